"""Ranks on several hosts by mpirun, in its four flavours: Open MPI 4 and 5, MPICH, Intel MPI.

mpirun only starts a supervisor for each rank (supervise.py); which cores, which environment and which command are
the supervisor's business. So nothing of the user's passes through mpirun's or ssh's hands but the job folder's path.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from distrib.documents import validate
from distrib.errors import MissingPartError, WorldError
from launch.cluster import Cluster
from launch.environment import travelling
from launch.inbox import say
from launch.job import Job, JobFolder, Start
from launch.jobs import create_job
from launch.keeper import keeping
from launch.local import Options
from launch.plan import Plan
from launch.reach import check_hosts
from launch.remote import STOPS, Starter, meeting_port, run_attempt, supervisor_argv
from launch.restarts import Outcome, Restarts

ASK_S = 20.0
ASK_AT_ONCE = 64
LACKING = Outcome(WorldError.exit_code, again=True)
"""An attempt for which there were not the hosts."""


@dataclass(frozen=True)
class Mpi:
    """One mpirun."""

    program: str
    """Its absolute path."""
    flavour: str
    """Open MPI, MPICH or Intel MPI."""
    major: int
    """Number of the main version."""

    def __str__(self) -> str:
        return f"{self.flavour} {self.major} ({self.program})"


def find_mpi(cluster: Cluster, path: str | None = None) -> Mpi:
    """Find the cluster's mpirun and ask which it is. Raises MissingPartError, WorldError."""
    word = cluster.mpirun.program
    program = shutil.which(word, path=path) or shutil.which(word, path=str(Path(sys.executable).parent))
    if program is None:
        raise MissingPartError(f"mpirun.program: {word!r} is not on PATH", "nothing was started",
                               "load the site's MPI module, or apt-get install openmpi-bin, or name its path")
    hydra = Path(program).resolve().with_name("mpiexec.hydra")
    if _is_script(Path(program)) and hydra.exists():
        program = str(hydra)  # Intel's mpirun is a script around it, which would take the signals for the ranks
    try:
        done = subprocess.run([program, "--version"], capture_output=True, text=True, errors="replace",
                              timeout=ASK_S, check=False, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.SubprocessError) as error:
        raise WorldError(f"{program} --version failed: {error}", "nothing was started", "check mpirun.program"
                         ) from error
    flavour, major = recognise(done.stdout + done.stderr)
    if not flavour:
        raise WorldError(f"{program} is no mpirun of Open MPI, MPICH or Intel MPI", "nothing was started",
                         "set mpirun.program to one of these")
    return Mpi(os.path.abspath(program), flavour, major)


def _is_script(program: Path) -> bool:
    try:
        with program.open("rb") as file:
            return file.read(2) == b"#!"
    except OSError as error:
        raise WorldError(f"mpirun.program: {program} can not be read: {error.strerror}", "nothing was started",
                         "have its permissions corrected, or name another mpirun") from error


def recognise(version: str) -> tuple[str, int]:
    """(flavour, main version) from what ``mpirun --version`` prints; ("", 0) for another program. Pure."""
    for flavour, pattern in (
        ("Open MPI", r"\(Open MPI\) v?(\d+)"), ("Open MPI", r"\(OpenRTE\) (\d+)"), ("Open MPI", r"PRRTE.*?(\d+)\."),
        ("Intel MPI", r"Intel\(R\) MPI Library.*?Version (\d+)"),
        ("MPICH", r"HYDRA build details:[\s\S]*?Version:\s*(\d+)"),
    ):
        if found := re.search(pattern, version):
            return flavour, int(found[1])
    return "", 0


def starter_argv(mpi: Mpi, hosts: Sequence[str], counts: Sequence[int], options: Sequence[str],
                 supervisor: Sequence[str], as_root: bool) -> list[str]:
    """The whole mpirun command. Binding is off: the supervisor pins. Pure."""
    total = str(sum(counts))
    listed = ",".join(f"{host}:{count}" for host, count in zip(hosts, counts, strict=True))
    if mpi.flavour == "Open MPI":
        words = [mpi.program, *(["--allow-run-as-root"] if as_root else []), "--host", listed, "-np", total,
                 # By slot fills one host after the other; the default changes with the number of ranks.
                 "--map-by", "slot", "--bind-to", "none"]
    else:
        # One block of ranks for each host, in order, however many they are.
        words = [mpi.program, "-hosts", listed, "-np", total]
        words += ["-bind-to", "none"] if mpi.flavour == "MPICH" else ["-genv", "I_MPI_PIN", "0"]
    return [*words, *options, *supervisor]


def make_starter(cluster: Cluster, mpi: Mpi, start: Start, folder: JobFolder, attempt: int) -> Starter:
    """How an attempt's supervisors are started by mpirun."""
    argv = starter_argv(mpi, start.hosts, start.counts, cluster.mpirun.options,
                        supervisor_argv(folder.path, str(attempt)), os.geteuid() == 0)
    # Inside a Slurm job, mpirun would take Slurm's hosts rather than the file's.
    own = ("OMPI_MCA_", "PRTE_MCA_", "I_MPI_", "HYDRA_", "TMPDIR", "SSH_")
    environment = travelling(os.environ) | {
        name: value for name, value in os.environ.items() if name.startswith(own)}
    # Both kinds of mpirun pass SIGUSR1 on and live; on SIGTERM Open MPI kills ranks after a second.
    return Starter(tuple(argv), environment, signal.SIGUSR1)


def run_plan(plan: Plan, options: Options) -> int:
    """Run a plan on its hosts to its end; the exit code. Raises DistribError."""
    mpi = find_mpi(plan.cluster)
    folder = create_job(plan, options.job, attached=True)
    say(f"{plan.cluster.name}: ranks: {len(plan.ranks)} on {len(plan.layout()[0])} host(s) by {mpi}; "
        f"job folder: {folder.path}")
    for warning in plan.warnings:
        say(warning)
    return run_job(folder, options.all_output)


def run_job(folder: JobFolder, all_output: bool = False) -> int:
    """Run the job of a folder to its end; the exit code."""
    job = folder.job()
    cluster = validate(Cluster, job.cluster, f"the job {folder.path}")
    with keeping(folder):
        if cluster.mpirun.ssh:
            check_hosts(job.hosts, supervisor_argv(folder.path, "0"))
        restarts = Restarts(cluster.restarts, cluster.restart_wait_s)
        hosts, counts = job.hosts, job.counts
        while True:
            began = time.monotonic()
            outcome = _run_attempt(folder, cluster, hosts, counts, all_output) if hosts else LACKING
            if (end := restarts.after(outcome, time.monotonic() - began, STOPS)) is not None:
                return end.code
            hosts, counts = _still_there(folder, job, cluster)


def _run_attempt(folder: JobFolder, cluster: Cluster, hosts: tuple[str, ...], counts: tuple[int, ...],
                 all_output: bool) -> Outcome:
    start = Start(hosts, counts, hosts[0], meeting_port())
    number = folder.begin(start)
    starter = make_starter(cluster, find_mpi(cluster), start, folder, number)
    return run_attempt(folder, number, starter, start_s=cluster.start_s, grace_s=cluster.grace_s,
                       stop_grace_s=cluster.stop_grace_s, all_output=all_output, elastic=cluster.elastic)


def _still_there(folder: JobFolder, job: Job, cluster: Cluster) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Hosts for another attempt, and their ranks: all that answer if the job is elastic, else all or none."""
    if not cluster.mpirun.ssh:
        return job.hosts, job.counts
    question = supervisor_argv(folder.path, "0")

    def trouble(host: str) -> WorldError | None:
        try:
            check_hosts([host], question)
        except WorldError as error:
            return error
        return None

    with ThreadPoolExecutor(ASK_AT_ONCE) as pool:
        troubles = dict(zip(job.hosts, pool.map(trouble, job.hosts), strict=True))
    missing = [host for host in job.hosts if troubles[host]]
    if missing:
        say(f"{', '.join(missing)} can not take ranks now" + (": left out" if cluster.elastic else ""))
    if missing and not cluster.elastic:
        return (), ()
    chosen = [(host, count) for host, count in zip(job.hosts, job.counts, strict=True) if not troubles[host]]
    return tuple(host for host, _ in chosen), tuple(count for _, count in chosen)


def plan_commands(plan: Plan) -> tuple[tuple[str, ...], ...]:
    """What `run_plan` will execute, for `launch plan`."""
    hosts, counts = plan.layout()
    return (tuple(starter_argv(find_mpi(plan.cluster), hosts, counts, plan.cluster.mpirun.options,
                               supervisor_argv(Path("JOB"), "1"), os.geteuid() == 0)),)
