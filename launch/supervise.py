"""A rank on any host: finds its number, its cores and its environment, runs the command, and leaves nothing behind.

mpirun and srun start one for each rank. Who the rank is comes from them; what to run from the job's folder; which
cores are there from this machine. Any signal they pass on means "save and end" to the command. How the command ended
goes to the job's folder, and this program ends with 0, so that mpirun has nothing to say about it.
Standard library only (see remote_rank.py).
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from distrib.errors import DistribError, WorldError
from launch.allocator import choose_allocator
from launch.environment import Seat, locate, rank_environment
from launch.job import Job, JobFolder, RankReport, Start
from launch.placement import Place, Wishes, place
from launch.processes import (
    UNKILLABLE_S,
    adopt_orphans,
    end_adopted,
    exit_code,
    remove_shared_memory,
    signal_adopted,
    signal_group,
)
from launch.settings import removed_names
from launch.topology import format_list, read_topology

STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
LOOK_S = 0.5
"""How often the supervisor looks whether mpirun's daemon still lives."""
SIGN_S = 3.0
"""How often a rank of an elastic job gives a sign of life."""
OF_MPI = ("OMPI_", "PMI_", "PMIX_", "MPI_LOCAL")
"""Beginnings of names that a command needs that calls MPI itself."""


def main(words: Sequence[str]) -> int:
    """Exit code 0 if the command's ending is on record, else 2 after one line on stderr."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {*STOPS, signal.SIGCHLD})
    if words[1:] != ["0"] and (supervisor := os.fork()):
        return _stand_in(supervisor, os.getppid())
    parent = os.getppid()
    host = socket.gethostname()
    try:
        if words[1:] != ["0"]:
            os.setsid()
        folder, attempt = JobFolder(Path(words[0])), int(words[1])
        try:
            job = folder.job()
            if attempt == 0:  # a question before the start: does this host see all it needs?
                return 0
            start = folder.start(attempt)
        except DistribError as error:
            raise WorldError(f"host {host} does not see the job's folder: {error.fact}", "nothing was started there",
                             "choose a folder with --job that all hosts share, and check its permissions") from error
        return _Rank(folder, attempt, job, start, host, parent).run()
    except DistribError as error:
        print(f"error: {error.one_line()}", file=sys.stderr, flush=True)
        return error.exit_code


def _stand_in(supervisor: int, parent: int) -> int:
    """Be the process that mpirun kills without a word when it is lost; the supervisor sees that, and clears up."""
    while (code := exit_code(supervisor)) is None and os.getppid() == parent:
        arrived = signal.sigtimedwait({*STOPS, signal.SIGCHLD}, LOOK_S)
        if arrived is not None and arrived.si_signo != signal.SIGCHLD:
            os.kill(supervisor, arrived.si_signo)
    return DistribError.exit_code if code is None or code < 0 else code


class _Rank:
    def __init__(self, folder: JobFolder, attempt: int, job: Job, start: Start, host: str, parent: int) -> None:
        self._folder, self._attempt, self._job, self._start = folder, attempt, job, start
        self._host, self._parent = host, parent
        self._asked = self._killing = False
        self._kill_at = float("inf")

    def run(self) -> int:
        seat = dataclasses.replace(find_seat(self._start, os.environ, self._host), restarts=self._attempt - 1)
        adopt_orphans()
        report = RankReport(seat.rank, self._host, "", "", None, 0, time.time())
        try:
            where, environment = self._prepare(seat)
            report = dataclasses.replace(report, cpus=format_list(where.cpus), comm_cpus=format_list(where.comm_cpus),
                                         memory_node=where.memory_node, threads=where.threads)
            self._folder.put_report(self._attempt, report)
            code = self._supervise(self._spawn(seat.rank, where, environment), report)
        except DistribError as error:
            print(f"error: rank {seat.rank} on {self._host}: {error.one_line()}", file=sys.stderr, flush=True)
            self._folder.write(self._folder.error_file(self._attempt, seat.rank), {"message": error.one_line()})
            code = error.exit_code
        self._folder.put_report(self._attempt, dataclasses.replace(
            report, ended=time.time(), code=code, unasked=not self._asked))
        return 0

    def _prepare(self, seat: Seat) -> tuple[Place, dict[str, str]]:
        wishes = Wishes(self._job.threads_per_rank, self._job.comm_cores, self._job.hyper_threads)
        where = place(read_topology(), seat.local_size, wishes).places[seat.local_rank]
        removed = {name for name in removed_names(os.environ) if not name.startswith(OF_MPI)}
        base = {name: value for name, value in os.environ.items() if name not in removed} | self._job.environment
        known = base | self._job.mine
        allocator = choose_allocator(self._job.allocator, known)
        own = rank_environment(seat, where, allocator.name, allocator.library, self._job.mine, known.get("LD_PRELOAD"),
                               self._job.interface, self._job.elastic)
        return where, base | own | {
            "TORCHELASTIC_ERROR_FILE": str(self._folder.error_file(self._attempt, seat.rank))}

    def _spawn(self, rank: int, where: Place, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
        words = [sys.executable, "-I", "-S", str(Path(__file__).with_name("rank.py")),
                 f"--cpus={format_list(where.cpus)}", f"--parent={os.getpid()}"]
        if self._job.launcher == "slurm":  # srun passes it to all processes of the step; it is for the supervisor
            words.append(f"--ignore={int(signal.SIGUSR1)}")
        if where.memory_node is not None:
            words.append(f"--memory-node={where.memory_node}")
        with ExitStack() as stack:
            streams: dict[str, Any] = {}
            try:
                if rank > 0 or not self._job.attached:
                    streams = {"stdin": subprocess.DEVNULL, **{
                        f"std{name}": stack.enter_context(self._folder.output(rank, name).open("ab"))
                        for name in ("out", "err")}}
                return subprocess.Popen([*words, "--", *self._job.command], env=environment, cwd=self._job.cwd,
                                        start_new_session=True, **streams)
            except OSError as error:
                raise WorldError(f"the command could not be started in {self._job.cwd}: {error.strerror}",
                                 "the rank was not started", "check that this host sees that folder and the job's"
                                 ) from error

    def _supervise(self, process: subprocess.Popen[bytes], report: RankReport) -> int:
        """Until the command and all it started have ended; its exit code, or minus the signal's number."""
        mine = {process.pid}
        sign_at = time.monotonic() + SIGN_S if self._job.elastic else float("inf")
        while (code := exit_code(process.pid)) is None:
            wait = max(0.0, min(LOOK_S, self._kill_at - time.monotonic()))
            arrived = signal.sigtimedwait({*STOPS, signal.SIGCHLD}, wait)
            if arrived is not None and arrived.si_signo != signal.SIGCHLD and not self._asked:
                self._asked = True
                self._kill_at = time.monotonic() + self._job.stop_grace_s
                signal_group(process.pid, signal.SIGTERM)
            if time.monotonic() >= sign_at:
                sign_at = time.monotonic() + SIGN_S
                report = dataclasses.replace(report, sign=report.sign + 1)
                with contextlib.suppress(DistribError):
                    self._folder.put_report(self._attempt, report)
            if os.getppid() != self._parent:  # mpirun's daemon or Slurm's is gone: nobody waits for a checkpoint
                self._asked, self._kill_at = True, 0.0
            if time.monotonic() >= self._kill_at:
                signal_group(process.pid, signal.SIGKILL)
                signal_adopted(mine, signal.SIGKILL)
        # Not reaped before: its group's number must not come to mean somebody else.
        signal_group(process.pid, signal.SIGKILL)
        end_adopted(mine, signal.SIGKILL, UNKILLABLE_S)
        process.wait()
        remove_shared_memory(process.pid)
        return code


def find_seat(start: Start, environment: Mapping[str, str], host: str) -> Seat:
    """Which rank of an attempt this process is. Raises WorldError where mpirun's or Slurm's word does not fit it."""
    try:
        found = locate(environment)
    except (ValueError, LookupError) as error:
        raise WorldError(f"the environment of rank processes on {host} is damaged: {error}",
                         "nothing was started there", "start the job with `launch run` or `launch submit`") from error
    if found is None:
        raise WorldError(f"{host}: neither mpirun nor srun says which rank this is", "nothing was started there",
                         "start the job with `launch run` or `launch submit`")
    rank, size, local_rank, local_size = found
    if size != start.size or not 0 <= local_rank < local_size:
        raise WorldError(f"{host} was told of {size} ranks, {local_size} here, where the job has {start.size}",
                         "nothing was started there", "check that mpirun belongs to the MPI that launch found "
                         "(launch plan shows it), and mpirun.options and slurm.options of the cluster file")
    return Seat(rank, size, local_rank, local_size, start.node_of(rank), len(start.hosts), start.master_addr,
                str(start.master_port))
