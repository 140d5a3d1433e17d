"""What the user is told when ranks fail: which was first, how, and in whose words. Pure."""

from __future__ import annotations

import signal
from collections.abc import Mapping, Sequence
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
    kind: str = ""
    """That error's class, if it is one of `distrib.errors`."""
    tail: tuple[str, ...] = ()
    """The last lines of its stderr where the launcher holds them: of every rank but 0, whose are on the terminal."""

    @property
    def status(self) -> int:
        """The exit code as a shell gives it: 128 and the signal's number for a signal."""
        return self.code if self.code >= 0 else 128 - self.code

    @property
    def how(self) -> str:
        """The ending in words."""
        return self.cause + (", as the kernel does when memory runs out" if -self.code == signal.SIGKILL else "")

    @property
    def cause(self) -> str:
        """The same, shorter."""
        return f"ended with exit code {self.code}" if self.code >= 0 else f"was killed by {signal_name(-self.code)}"


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


def tell_loss(ending: Ending, host: str, left: int, logs: Path | None) -> str:
    """The line about a rank of an elastic job that failed, while ``left`` others go on."""
    last = ending.error or (ending.tail[-1].removeprefix("error: ") if ending.tail else "")
    others = f"{left} other{'s go' if left > 1 else ' goes'} on"
    kept = f" (output: {logs})" if logs and ending.rank else ""
    return f"launch: rank {ending.rank} on {host} is lost: it {ending.how}{': ' * bool(last)}{last}; {others}{kept}"


def tell_losses(lost: Mapping[int, str]) -> list[str]:
    """The last line of an elastic job that ended well without some ranks; each with what became of it."""
    ranks = ", ".join(f"rank {rank} ({what})" for rank, what in sorted(lost.items()))
    return [f"launch: the job ended well, though it lost {ranks}"] if lost else []


def tell_stop(endings: Sequence[Ending], asked: int, logs: Path | None) -> list[str]:
    """Lines about ranks that ended otherwise than one does on the signal ``asked``."""
    fine = {0, -asked, 128 + asked, -signal.SIGTERM, 128 + signal.SIGTERM, -signal.SIGKILL}
    kept = f" (output of the other ranks: {logs})" if logs else ""
    return [f"launch: rank {ending.rank} {ending.how} when it was asked to stop{kept}"
            for ending in endings if not ending.unasked and ending.code not in fine]


def stop_in_words(asked: int, grace_s: float) -> str:
    """What becomes of a signal that asks the launcher to stop."""
    return (f"{signal_name(asked)}: passed on; ranks have {grace_s:g} s to save and end"
            + (" (Ctrl-C again kills them)" if asked == signal.SIGINT else ""))


def late_in_words(late: int, size: int, grace_s: float) -> str:
    """Of ranks that are still there after ``grace_s``."""
    return f"{late} of {size} ranks did not end within {grace_s:g} s and are killed"
