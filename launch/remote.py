"""Run a job's ranks on other hosts through a starter (mpirun or srun), and watch them by what they leave in its folder.

The starter is one process below this one, in a session of its own, under the same guard as local ranks. The
supervisors (supervise.py) tell in the job's folder how ranks ended, so failures are told in the same words as local
ones, whatever the starter says.
"""

from __future__ import annotations

import contextlib
import os
import random
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from distrib.errors import DistribError, StorageError, WorldError
from launch.follow import Follower
from launch.inbox import REPEAT_S, say, show, signal_inbox
from launch.inbox import STOPS as LOCAL_STOPS
from launch.job import JobFolder, RankReport, Start, read_tail
from launch.losses import SETTLE_S, Losses
from launch.output import TAIL_LINES, copy_to_stdout
from launch.processes import UNKILLABLE_S, end_adopted, exit_code, guard_process, signal_group, tell_guard
from launch.report import (
    Ending,
    first_failure,
    late_in_words,
    stop_in_words,
    tell_failure,
    tell_loss,
    tell_losses,
    tell_stop,
)
from launch.restarts import Outcome, found_fault, may_go_better

STOPS = (*LOCAL_STOPS, signal.SIGUSR1)
"""Slurm's warning before the time limit is SIGUSR1."""
SUPERVISOR = Path(__file__).with_name("remote_rank.py")
LOOK_S = 0.25
"""How often the job's folder is looked at."""
LOST_S = 30.0
"""A rank of an elastic job that gives no sign of life for so long is lost, and not waited for."""
LATE_S = 5.0
"""Beyond its time a rank is given so much more before the starter itself is ended."""
WORDS_S = 5.0
"""After the starter's end, wait so long for a rank's last word to become visible on a network file system."""


@dataclass(frozen=True)
class Starter:
    """How an attempt's supervisors are started."""

    argv: tuple[str, ...]
    environment: dict[str, str]
    stop_signal: int
    """What the starter passes on to the ranks without ending itself."""


def supervisor_argv(job: Path, attempt: str) -> list[str]:
    """The command of every rank."""
    return [sys.executable, "-I", "-S", str(SUPERVISOR), str(job), attempt]


def meeting_port() -> int:
    """A port for the ranks' meeting on another host: by chance, from below those of outgoing connections."""
    return random.SystemRandom().randrange(20000, 32000)


def run_attempt(folder: JobFolder, number: int, starter: Starter, *, start_s: float, grace_s: float,
                stop_grace_s: float, all_output: bool = False, elastic: bool = False) -> Outcome:
    """Run one attempt of a job to its end. Raises WorldError if the starter can not be started.

    In an elastic job a lost rank or host ends nothing, and the attempt ends well if one rank does.
    """
    with signal_inbox(STOPS) as inbox, guard_process() as guard:
        watch = _Watch(folder, number, starter, inbox, start_s, grace_s, stop_grace_s, all_output, elastic)
        try:
            watch.start(guard)
            return watch.until_end()
        finally:
            watch.kill_all(guard.pid)


class _Watch:
    def __init__(self, folder: JobFolder, number: int, starter: Starter, inbox: int, start_s: float,
                 grace_s: float, stop_grace_s: float, all_output: bool, elastic: bool) -> None:
        self._folder, self._number, self._starter, self._inbox = folder, number, starter, inbox
        self._start_s, self._grace_s, self._stop_grace_s = start_s, grace_s, stop_grace_s
        self._start_by = time.monotonic() + start_s
        self._plan: Start = folder.start(number)
        self._process: subprocess.Popen[bytes] | None = None
        self._reports: dict[int, RankReport] = {}
        self._offsets = {(rank, name): _size(folder.output(rank, name))
                         for rank in range(1, self._plan.size) for name in ("out", "err")}
        self._relay = self._follow("out", "err") if all_output else None
        self._elastic, self._losses = elastic, Losses()
        self._signs: dict[int, tuple[int, float]] = {}
        self._mute: set[int] = set()  # ranks that give no sign any more
        self._selector = selectors.DefaultSelector()
        self._selector.register(inbox, selectors.EVENT_READ)
        self._stop, self._stopped_at = 0, 0.0
        self._signalled = self._told = False
        self._term_at = self._end_at = self._kill_at = float("inf")

    def start(self, guard: subprocess.Popen[bytes]) -> None:
        try:
            self._process = subprocess.Popen(self._starter.argv, env=self._starter.environment, start_new_session=True)
        except OSError as error:
            raise WorldError(f"{self._starter.argv[0]} could not be started: {error.strerror}", "nothing was started",
                             "check its path in the cluster file") from error
        tell_guard(guard, self._process.pid)

    def until_end(self) -> Outcome:
        assert self._process is not None
        self._look()
        while (code := exit_code(self._process.pid)) is None:
            self._advance(time.monotonic())
            self._wait()
            self._look()
        deadline = time.monotonic() + WORDS_S
        while self._silent() and not self._signalled and time.monotonic() < deadline:
            time.sleep(LOOK_S)
            self._look()
        return self._outcome(code if code >= 0 else 128 - code)

    def kill_all(self, guard_pid: int) -> None:
        """End the starter if it still lives, at once."""
        self._selector.close()
        if self._process is not None:
            signal_group(self._process.pid, signal.SIGKILL)
            end_adopted({guard_pid, self._process.pid}, signal.SIGKILL, UNKILLABLE_S)
            self._process.wait()

    def _endings(self) -> list[Ending]:
        return self._folder.endings(self._number, self._reports)

    def _silent(self) -> list[int]:
        """Ranks that have not told their end."""
        return [rank for rank in range(self._plan.size)
                if rank not in self._reports or self._reports[rank].code is None]

    def _follow(self, *names: str) -> Follower:
        """Ranks' logs, from where this attempt began."""
        return Follower([(rank, self._folder.output(rank, name), start)
                         for (rank, name), start in self._offsets.items() if name in names])

    def _hosts_of(self, ranks: Sequence[int]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(self._plan.hosts[self._plan.node_of(rank)] for rank in ranks))

    def _look(self) -> None:
        if self._silent():
            with contextlib.suppress(StorageError):
                self._reports = self._folder.reports(self._number)
        if self._relay:
            self._relay.pass_on()

    def _advance(self, now: float) -> None:
        if not self._signalled:
            if now >= self._start_by and len(self._reports) < self._plan.size:
                late = [rank for rank in range(self._plan.size) if rank not in self._reports]
                say(f"{', '.join(self._hosts_of(late))}: ranks did not start within "
                    f"{self._start_s:g} s (start_s)")
                self._ask_to_end(now, 0.0)
                return
            if self._elastic:
                self._go_on_without(now)
            elif any(report.code for report in self._reports.values()):
                self._term_at = min(self._term_at, now + SETTLE_S)
            if now >= self._term_at:
                self._tell_failure()
                self._ask_to_end(now, self._grace_s)
        if now >= self._kill_at:
            signal_group(self._pid(), signal.SIGKILL)
            self._kill_at = float("inf")
        elif now >= self._end_at:
            if self._stop and (late := self._silent()):
                say(late_in_words(len(late), self._plan.size, self._stop_grace_s))
            signal_group(self._pid(), signal.SIGTERM)
            self._end_at, self._kill_at = float("inf"), now + LATE_S

    def _go_on_without(self, now: float) -> None:
        """Tell of ranks that failed or give no sign of life while others run; end what waits for those alone."""
        silent = self._silent()
        for rank, report in self._reports.items():
            if report.code is None and report.sign != self._signs.get(rank, (-1, 0.0))[0]:
                self._signs[rank] = report.sign, now
                self._mute.discard(rank)
        mute = {rank for rank in silent if rank in self._signs and now - self._signs[rank][1] > LOST_S}
        if new := sorted(mute - self._mute):
            self._mute |= mute
            say(f"{', '.join(self._hosts_of(new))}: no sign of life for {LOST_S:g} s from rank "
                f"{', '.join(map(str, new))}; the others go on")
        if mute and mute.issuperset(silent) and len(silent) < self._plan.size:
            self._ask_to_end(now, 0.0)
        elif left := len(set(silent) - mute):
            for ending in self._losses.due(self._endings(), now):
                if found_fault(ending):  # the others would wait for it in vain, or meet the same
                    self._term_at = now
                    return
                host = self._hosts_of([ending.rank])[0]
                show([tell_loss(self._whole(ending), host, left, self._folder.logs)])
                if ending.rank == 0 and self._folder.job().attached:
                    self._relay = self._relay or self._follow("err")  # another speaks for all now

    def _ask_to_end(self, now: float, grace_s: float) -> None:
        """Have the starter pass on the signal to save and end; after the grace it is ended itself."""
        self._signalled = True
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._pid(), self._starter.stop_signal)
        self._end_at = now + grace_s

    def _wait(self) -> None:
        for _ in self._selector.select(LOOK_S):
            for number in os.read(self._inbox, 4096):
                if number in STOPS:
                    self._asked_to_stop(number)

    def _asked_to_stop(self, number: int) -> None:
        now = time.monotonic()
        if self._signalled:
            if now - self._stopped_at > REPEAT_S:
                say("killing all ranks")
                signal_group(self._pid(), signal.SIGTERM)
                self._end_at, self._kill_at = float("inf"), now + LATE_S
            return
        self._stop, self._stopped_at = number, now
        self._ask_to_end(now, self._stop_grace_s + LATE_S)  # the supervisors kill at stop_grace_s
        say(stop_in_words(number, self._stop_grace_s))

    def _pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def _outcome(self, code: int) -> Outcome:
        if self._relay:
            self._relay.pass_on()
            self._relay.finish()
        endings, silent = self._endings(), self._silent()
        lost = self._hosts_of(silent)
        if self._elastic and not self._stop and any(ending.code == 0 for ending in endings):
            return self._end_well(endings, silent)
        self._tell_failure()
        if self._stop:
            show(tell_stop([e for e in endings if not e.unasked], signal.SIGTERM, self._folder.logs))
            return Outcome(128 + self._stop, self._stop, lost)
        first = first_failure(endings)
        if first is not None:
            lost = lost if self._mute or not self._signalled else ()
            return Outcome(first.status, lost=lost, again=may_go_better(endings, self._plan.size, lost))
        if silent:
            if len(silent) == self._plan.size and not self._reports:
                say(f"no rank was started: {Path(self._starter.argv[0]).name} ended with exit code {code}; "
                    "`launch doctor` says which host is at fault")
            else:
                say(f"no last word from {', '.join(lost)}: the host, its network or "
                    f"{Path(self._starter.argv[0]).name}'s daemon there died (logs: {self._folder.logs})")
            return Outcome(code or DistribError.exit_code, lost=lost, again=bool(self._reports))
        return Outcome(0)

    def _end_well(self, endings: Sequence[Ending], silent: Sequence[int]) -> Outcome:
        fates = self._losses.fates(endings) | dict.fromkeys(silent, "left no last word")
        show(tell_losses(fates))
        if 0 in fates and self._folder.job().attached:
            if self._relay is None:
                self._follow("err").pass_on()
            speaker = min(ending.rank for ending in endings if ending.code == 0)
            copy_to_stdout(self._folder.output(speaker, "out"), self._offsets[speaker, "out"])
        return Outcome(0, lost=self._hosts_of(silent))

    def _whole(self, ending: Ending) -> Ending:
        """With its last lines, where they are in the logs."""
        return replace(ending, tail=() if ending.rank == 0 else read_tail(
            self._folder.output(ending.rank, "err"), TAIL_LINES, self._offsets[ending.rank, "err"]))

    def _tell_failure(self) -> None:
        if self._told or first_failure(self._endings()) is None:
            return
        self._told = True
        show(tell_failure([self._whole(ending) for ending in self._endings()], self._folder.logs))


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
