"""Start a plan's ranks on this machine, watch them, and leave no process behind.

Each rank leads a session of its own, and this process adopts whatever they orphan (PR_SET_CHILD_SUBREAPER). So the
end is certain: it is reached when this process has no child left. Dead ranks are not reaped before, so that their
process group's number can not come to mean somebody else. If this process itself is killed with -9, the kernel kills
the ranks (rank.py) and the guard kills their groups (guard.py).
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import selectors
import signal
import socket
import subprocess
import time
from dataclasses import dataclass, replace
from pathlib import Path

from distrib.documents import validate
from distrib.errors import WorldError
from launch.cluster import Cluster
from launch.inbox import REPEAT_S, STOPS, say, show, signal_inbox
from launch.job import JobFolder
from launch.keeper import keeping
from launch.losses import SETTLE_S, Losses
from launch.output import Output
from launch.plan import Plan, build_plan, wrapped
from launch.processes import (
    UNKILLABLE_S,
    adopted,
    exit_code,
    guard_process,
    remove_shared_memory,
    signal_adopted,
    signal_group,
    tell_guard,
)
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
from launch.restarts import Outcome, Restarts, found_fault, may_come_back, may_go_better
from launch.topology import read_topology


@dataclass(frozen=True)
class Options:
    """How one launch is to be run."""

    logs: Path | None = None
    """Folder for the output of ranks 1 and up; None: a temporary one, kept if something fails."""
    all_output: bool = False
    """Also pass their output on to stderr, each line with its rank before it."""
    job: Path | None = None
    """Folder of a job on other hosts; None: a new one below the current folder."""


def run_plan(plan: Plan, options: Options) -> int:
    """Run a plan to its end and return the exit code: 0, the first failing rank's, or 128 and a signal's number.

    In an elastic job it is 0 as soon as one rank ends with 0. A job that was killed is started again, as often as
    the cluster file's `restarts` allows.

    Raises WorldError if a rank can not be started, StorageError if its log can not; then all are ended.
    """
    threads = sorted({rank.place.threads for rank in plan.ranks if rank.place})
    each = f"{threads[0]}" if len(threads) == 1 else f"{threads[0]} to {threads[-1]}"
    say(f"{plan.cluster.name}: ranks: {len(plan.ranks)}, threads of each: {each}, malloc: {plan.allocator.remark}")
    for warning in plan.warnings:
        say(warning)
    restarts = Restarts(plan.cluster.restarts, plan.cluster.restart_wait_s)
    with Output(options.logs, len(plan.ranks), options.all_output) as output:
        for number in itertools.count():
            began = time.monotonic()
            outcome = _run_attempt(plan.with_port(free_port(), number), output, restarts)
            if (end := restarts.after(outcome, time.monotonic() - began)) is not None:
                return end.code
    raise AssertionError("the loop has no end of its own")


def _run_attempt(plan: Plan, output: Output, restarts: Restarts) -> Outcome:
    with signal_inbox() as inbox, guard_process() as guard:
        watch = _Watch(plan, output, inbox, guard, restarts)
        try:
            for rank in range(len(plan.ranks)):
                watch.start(rank)
            return watch.until_end()
        finally:
            watch.kill_all()


def run_job(folder: JobFolder) -> int:
    """Run the submitted job of a folder to its end; the exit code."""
    job = folder.job()
    cluster = validate(Cluster, job.cluster, f"the job {folder.path}")
    with keeping(folder):
        plan = build_plan(cluster, read_topology(), job.command, host=socket.gethostname(), num_ranks=sum(job.counts))
        return run_plan(plan, Options(logs=folder.logs))


def free_port() -> int:
    """A TCP port of loopback that is free now, from below those that the kernel gives to outgoing connections."""
    for port in (*random.sample(range(20000, 32000), 20), 0):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return int(probe.getsockname()[1])
    raise WorldError("no TCP port of 127.0.0.1 is free", "nothing was started", "end some other programs")


class _Watch:
    """The ranks of one launch, from the first start to the last end."""

    def __init__(self, plan: Plan, output: Output, inbox: int, guard: subprocess.Popen[bytes],
                 restarts: Restarts) -> None:
        self._plan, self._output, self._inbox, self._guard = plan, output, inbox, guard
        self._restarts, self._began = restarts, time.monotonic()
        self._base = {name: value for name, value in os.environ.items() if name not in plan.removed}
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._replaced: list[subprocess.Popen[bytes]] = []
        self._endings: dict[int, Ending] = {}
        self._selector = selectors.DefaultSelector()
        self._selector.register(inbox, selectors.EVENT_READ)
        self._stop = 0  # the signal that asked this launch to stop
        self._stopped_at = 0.0
        self._signalled = False  # whether ranks were sent anything; what ends afterwards did not fail by itself
        self._term_at = self._kill_at = self._leave_at = float("inf")
        self._told = False
        self._losses = Losses()
        self._join_at: dict[int, float] = {}

    def start(self, rank: int, **environment: str) -> None:
        """Start a rank, with more in its environment than the plan says."""
        planned = self._plan.ranks[rank]
        try:
            process = self._output.start(wrapped(self._plan, planned, os.getpid()),
                                         {**self._base, **planned.environment, **environment}, rank, self._selector)
        except OSError as error:
            raise WorldError(f"rank {rank} could not be started: {error.strerror}", "all ranks were ended",
                             "check the limits of processes and open files (ulimit -a), and the log folder") from error
        self._processes[rank] = process
        tell_guard(self._guard, process.pid)

    def until_end(self) -> Outcome:
        while True:
            self._collect()
            running = len(self._endings) < len(self._processes)
            if not running and not self._adopted():
                break
            now = time.monotonic()
            if now >= self._leave_at:
                say("some processes can not be killed: they hang in the kernel, perhaps on a file server that is gone")
                break
            self._advance(now, running)
            self._wait(min(min(self._term_at, self._kill_at, self._leave_at, self._losses.due_at(),
                               *self._join_at.values()) - time.monotonic(), self._output.pass_on()))
        self._wait(0.0)  # a stop that came at the very end
        self._output.drain(self._selector)
        endings = list(self._endings.values())
        if self._stop:
            self._tell_failure()
            self._tell(tell_stop(endings, self._stop, self._output.folder))
            return Outcome(128 + self._stop, self._stop)
        if self._is_elastic and any(ending.code == 0 for ending in endings):
            self._tell(tell_losses(self._losses.fates(endings)))
            if (speaker := self._losses.speaker(endings)) is not None:
                self._output.follow_others()
                self._output.pass_on()
                self._output.stand_in(speaker)
            return Outcome(0)
        self._tell_failure()
        first = first_failure(endings)
        return Outcome(first.status, again=may_go_better(endings, len(endings))) if first else Outcome(0)

    @property
    def _is_elastic(self) -> bool:
        return self._plan.cluster.elastic

    def kill_all(self) -> None:
        """End what still lives, at once, and reap everything."""
        self._send(signal.SIGKILL)
        deadline = time.monotonic() + UNKILLABLE_S
        while self._adopted() and time.monotonic() < deadline:
            self._send(signal.SIGKILL)
            time.sleep(0.01)
        for process in (*self._replaced, *self._processes.values()):
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))
                remove_shared_memory(process.pid)
        self._selector.close()

    def _advance(self, now: float, running: bool) -> None:
        """Send what is due: SIGTERM some time after a failure, or to what finished ranks left; then SIGKILL."""
        failed = any(ending.code for ending in self._endings.values())
        if not self._signalled:
            if self._is_elastic:
                if running:
                    self._go_on_without(now)
            elif failed:
                self._term_at = min(self._term_at, now + SETTLE_S)
            if not running:
                self._term_at = now
            if now >= self._term_at:
                if failed and (running or not self._is_elastic):
                    self._tell_failure()
                self._send(signal.SIGTERM)
                self._kill_at = now + self._plan.cluster.grace_s
        if self._signalled:
            self._term_at = float("inf")
        if now >= self._kill_at:
            late = [rank for rank in self._processes if rank not in self._endings]
            if late and self._stop:
                say(late_in_words(len(late), len(self._processes), self._plan.cluster.stop_grace_s))
            self._kill(now)

    def _go_on_without(self, now: float) -> None:
        """Tell of ranks that failed while others run, end what they left, and start them again as joiners."""
        left = len(self._processes) - len(self._endings)
        for ending in self._losses.due(self._endings.values(), now):
            signal_group(self._processes[ending.rank].pid, signal.SIGKILL)
            came_back = ending.rank in self._losses.came_back
            if found_fault(ending) and not came_back:  # the others would wait for it in vain, or meet the same
                self._term_at = now
                return
            whole = replace(ending, tail=self._output.tail_of(ending.rank))
            self._tell([tell_loss(whole, self._plan.ranks[ending.rank].host, left, self._output.folder)])
            if ending.rank == 0:
                self._output.follow_others()
            in_vain = came_back and ending.code > 0
            if (may_come_back(ending) and not in_vain
                    and (pause := self._restarts.pause_s(now - self._began)) is not None):
                self._join_at[ending.rank] = now + pause
        for rank in [rank for rank, at in self._join_at.items() if now >= at]:
            del self._join_at[rank], self._endings[rank]
            self._replaced.append(self._processes[rank])
            self._losses.comes_back(rank)
            self._began = now
            say(f"rank {rank} is started again, to join the others")
            self.start(rank, LAUNCH_JOIN="1")

    def _kill(self, now: float) -> None:
        self._send(signal.SIGKILL)
        self._kill_at = float("inf")
        self._leave_at = min(self._leave_at, now + UNKILLABLE_S)

    def _wait(self, timeout_s: float) -> None:
        timeout = None if timeout_s == float("inf") else max(0.0, timeout_s)
        for key, _ in self._selector.select(timeout):
            if key.fd != self._inbox:
                self._output.pump(key.fd, self._selector)
                continue
            for number in os.read(self._inbox, 4096):
                if number in STOPS:
                    self._asked_to_stop(number)
                elif number == signal.SIGCHLD:
                    self._adopted()  # reaps

    def _asked_to_stop(self, number: int) -> None:
        now = time.monotonic()
        if self._signalled:  # the second Ctrl-C, or one after a failure: no more waiting
            if now - self._stopped_at > REPEAT_S:
                say("killing all ranks")
                self._kill(now)
            return
        self._stop, self._stopped_at = number, now
        # Trainers save on SIGTERM; few know SIGHUP, which says that the terminal is gone.
        self._send(signal.SIGTERM if number == signal.SIGHUP else number)
        self._kill_at = now + self._plan.cluster.stop_grace_s
        say(stop_in_words(number, self._plan.cluster.stop_grace_s))

    def _collect(self) -> None:
        """Note which ranks have ended, without reaping them."""
        for rank, process in self._processes.items():
            if rank in self._endings:
                continue
            code = exit_code(process.pid)
            if code is None:
                continue
            error, wrote_at, kind = self._output.error_of(rank)
            self._endings[rank] = Ending(rank, code, wrote_at or time.time(), not self._signalled, error, kind)

    def _send(self, number: int) -> None:
        self._signalled = True
        groups = {process.pid for process in self._processes.values() if process.returncode is None}
        for group in groups:
            signal_group(group, number)
        signal_adopted(self._mine(), number, groups)

    def _adopted(self) -> list[int]:
        """Processes that ranks left behind and that live; those that ended are reaped."""
        return adopted(self._mine())

    def _mine(self) -> set[int]:
        return {self._guard.pid, *(process.pid for process in (*self._replaced, *self._processes.values()))}

    def _tell_failure(self) -> None:
        if self._told:
            return
        self._told = True
        self._output.drain(self._selector)
        endings = [replace(ending, tail=self._output.tail_of(ending.rank)) for ending in self._endings.values()]
        self._tell(tell_failure(endings, self._output.folder))

    def _tell(self, lines: list[str]) -> None:
        if lines:
            self._output.keep()
        show(lines)
