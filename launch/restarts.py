"""Whether a job that failed is started again, and when."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import dataclass, replace

from launch.inbox import STOPS, say, signal_inbox, wait_for_stop
from launch.report import Ending

LONG_S = 600.0
"""An attempt that lived for so long was no vain one: the count of restarts begins anew."""
MOST_WAIT_S = 300.0
ASKED = {int(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)}
"""Signals by which somebody asks a rank itself to end."""
OF_OTHERS = "WorldError"
"""The class of errors that the loss of others brings about; see `distrib.errors`."""


@dataclass(frozen=True)
class Outcome:
    """How an attempt ended."""

    code: int
    """0, the first failing rank's, or 128 and the number of the signal that this launcher got."""
    stopped: int = 0
    """The signal that asked this launcher to stop; 0: none."""
    lost: tuple[str, ...] = ()
    """Hosts whose ranks left without a word: a node or mpirun's daemon there died."""
    again: bool = False
    """Whether it failed in a way that another attempt may not."""


def was_killed(ending: Ending) -> bool:
    """Whether a signal ended a rank, or the child of a shell that stands in for it, and nobody asked for its end."""
    number = -ending.code if ending.code < 0 else ending.code - 128
    return ending.unasked and 0 < number <= signal.SIGRTMAX and number not in ASKED


def may_come_back(ending: Ending) -> bool:
    """Whether this rank failed through no fault of the input: by a signal, or as it lost the others. Pure."""
    return was_killed(ending) or (ending.unasked and ending.code == 2 and ending.kind == OF_OTHERS)


def found_fault(ending: Ending) -> bool:
    """Whether this rank diverged, or found fault with its input or its host; by its own words. Pure."""
    return ending.unasked and (ending.code == 3 or (ending.code == 2 and ending.kind not in ("", OF_OTHERS)))


def may_go_better(endings: Sequence[Ending], size: int, lost: Sequence[str] = ()) -> bool:
    """Whether a failed attempt of ``size`` ranks is worth another one. Pure.

    Not if a rank diverged or found fault with its input, nor if all ranks say the same of themselves.
    """
    alone = [ending for ending in endings if ending.unasked and ending.code]
    if any(ending.code == 3 or ending.kind not in ("", OF_OTHERS) for ending in alone):
        return False
    if lost or any(map(was_killed, alone)):
        return True
    alike = len(alone) == size and len({(ending.code, ending.error) for ending in alone}) == 1
    return any(map(may_come_back, alone)) and not alike


class Restarts:
    """How many starts a job has left. ``most`` in a row, the first after ``wait_s``, each further after twice that."""

    def __init__(self, most: int, wait_s: float) -> None:
        self._most, self._wait_s, self._used = most, wait_s, 0

    def pause_s(self, lived_s: float) -> float | None:
        """Count one more start: seconds to wait before it; None: there is none left.

        ``lived_s``: how long the ranks had run.
        """
        if lived_s >= LONG_S:
            self._used = 0
        if self._used >= self._most:
            return None
        self._used += 1
        return float(min(self._wait_s * 2 ** (self._used - 1), MOST_WAIT_S))

    def after(self, outcome: Outcome, lived_s: float, stops: Sequence[signal.Signals] = STOPS) -> Outcome | None:
        """Say and wait, then None: the job is to start again. Else how it ended for good."""
        if not outcome.again or outcome.stopped or not self._most:
            return outcome
        pause = self.pause_s(lived_s)
        if pause is None:
            say(f"given up after {self._most} restart{'s' if self._most > 1 else ''} in a row")
            return outcome
        with signal_inbox(stops) as inbox:
            say(f"the job failed; it starts again in {pause:g} s (restart {self._used} of {self._most})")
            stopped = wait_for_stop(inbox, pause, stops)
        return replace(outcome, code=128 + stopped, stopped=stopped) if stopped else None
