"""What the user is told when ranks fail: which was first, how, and in whose words. Pure."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

EXPECTED_FAILURES = (2, 3)
"""Exit codes that come with one clear line of their own: bad input, a loss that is no number."""


@dataclass(frozen=True)
class Ending:
    """How one rank ended."""

    rank: int
    code: int
    """Exit code, or minus the number of the signal that killed it."""
    when: float
    """Seconds since the epoch: when it wrote its error, or else when it ended."""
    unasked: bool = True
    """Whether it ended before the launcher sent any signal."""
    error: str = ""
    """The message that the rank left in its error file (see torch's `TORCHELASTIC_ERROR_FILE`)."""
    tail: tuple[str, ...] = ()
    """The last lines of its stderr where the launcher holds them: of every rank but 0, whose are on the terminal."""

    @property
    def status(self) -> int:
        """The exit code as a shell gives it: 128 and the signal's number for a signal."""
        return self.code if self.code >= 0 else 128 - self.code

    @property
    def how(self) -> str:
        """The ending in words."""
        if self.code >= 0:
            return f"ended with exit code {self.code}"
        hint = ", as the kernel does when memory runs out" if -self.code == signal.SIGKILL else ""
        return f"was killed by {signal_name(-self.code)}{hint}"


def signal_name(number: int) -> str:
    """SIGTERM for 15; the number for one without a name."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def first_failure(endings: Sequence[Ending]) -> Ending | None:
    """The rank that failed first of those that failed by themselves."""
    failed = [ending for ending in endings if ending.unasked and ending.code]
    return min(failed, key=lambda ending: (ending.when, ending.rank), default=None)


def tell_failure(endings: Sequence[Ending], logs: Path | None) -> list[str]:
    """Lines for stderr about the first failure; none if rank 0 has said it all on the terminal.

    ``logs`` is the folder of the other ranks' output, if there is one.
    """
    first = first_failure(endings)
    if first is None:
        return []
    kept = f" (output of the other ranks: {logs})" if logs else ""
    zero = next((e for e in endings if e.rank == 0 and e.unasked and e.code > 0), None)
    if first.rank == 0:
        others = {ending.code for ending in endings if ending.unasked and ending.code}
        told = first.code in EXPECTED_FAILURES and others == {first.code}
        return [] if told else [f"launch: rank 0 {first.how}{kept}"]
    last = first.error or (first.tail[-1].removeprefix("error: ") if first.tail else "")
    if zero is not None and zero.code == first.code and zero.error and zero.error == last:
        return []
    if last and first.code in EXPECTED_FAILURES and (first.error or first.tail[-1].startswith("error: ")):
        return [f"error: rank {first.rank}: {last}{kept}"]
    lines = [f"launch: rank {first.rank} failed first: it {first.how}{kept}"]
    return lines + [f"  {line}" for line in first.tail]


def tell_stop(endings: Sequence[Ending], asked: int, logs: Path | None) -> list[str]:
    """Lines about ranks that ended otherwise than one does on the signal ``asked``."""
    fine = {0, -asked, 128 + asked, -signal.SIGTERM, 128 + signal.SIGTERM, -signal.SIGKILL}
    kept = f" (output of the other ranks: {logs})" if logs else ""
    return [f"launch: rank {ending.rank} {ending.how} when it was asked to stop{kept}"
            for ending in endings if not ending.unasked and ending.code not in fine]
