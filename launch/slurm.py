"""Ranks inside an allocation of Slurm's: started by srun, moved to spare nodes, requeued.

Whatever ends an attempt early, the command is started again as it was, and resumes by itself (`distrib train --run`
does). Who is told what, by Slurm 22.05:

- the time limit nears: USR1 to the batch process, as the script's --signal asks for
- preemption: CONT and TERM to the ranks, at its end after GraceTime to all
- scancel: CONT and TERM to all, KILL after KillWait
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from distrib.documents import validate
from distrib.errors import WorldError, counted, printable, storage_errors
from launch.cluster import Cluster
from launch.inbox import say, signal_inbox
from launch.job import Job, JobFolder, Start
from launch.jobs import create_job
from launch.keeper import keeping
from launch.local import Options
from launch.plan import Plan
from launch.remote import STOPS, Starter, meeting_port, run_attempt, supervisor_argv
from launch.restarts import Outcome, Restarts
from launch.sbatch import ask, resources

OF_SRUN = re.compile(r"SLURM_(NTASKS.*|NPROCS|NNODES|CPUS_PER_TASK|TRES_PER_TASK|DISTRIBUTION|CPU_BIND.*|HINT|HOSTFILE"
                     r"|THREADS_PER_CORE|EXCLUSIVE|EXACT|KILL_BAD_EXIT|NO_KILL|OVERLAP|STDINMODE|EXPORT_ENV)")
"""Variables that srun would take for options of its own."""
PROBE_S = 30.0
"""A node that starts no process within this time is taken for dead."""
REQUEUED_S = 60.0


def run_plan(plan: Plan, options: Options) -> int:
    """Run a plan in this shell's allocation, or in a new one that ends with it; the exit code. Raises DistribError."""
    folder = create_job(plan, options.job, attached=True)
    for warning in plan.warnings:
        say(warning)
    with keeping(folder):
        if allocation := os.environ.get("SLURM_JOB_ID"):
            return _run(folder, allocation, options.all_output)
        argv = salloc_argv(plan)
        with signal_inbox() as inbox:
            say(f"{plan.cluster.name}: waiting for nodes ({plan.cluster.slurm.spares + len(plan.layout()[0])})")
            allocation, stopped = _allocate(argv, inbox)
        if stopped:
            say("interrupted before there were nodes; the request was taken back")
            return 128 + stopped
        with _ending_with_us(allocation):
            say(f"job {allocation} of Slurm's; job folder: {folder.path}")
            return _run(folder, allocation, options.all_output)


def plan_commands(plan: Plan) -> tuple[tuple[str, ...], ...]:
    """What `run_plan` will execute, for `launch plan`."""
    hosts, counts = plan.layout()
    srun = srun_argv(len(hosts), sum(counts), supervisor_argv(Path("JOB"), "1"), True)
    return tuple(salloc_argv(plan)), tuple(srun)


def salloc_argv(plan: Plan) -> list[str]:
    """The command that asks for a plan's nodes. Pure."""
    counts = plan.layout()[1]
    return ["salloc", "--no-shell", *resources(plan.cluster, plan.cluster.name, len(counts), max(counts)),
            *plan.cluster.slurm.options]


def srun_argv(num_nodes: int, num_ranks: int, supervisor: Sequence[str], attached: bool) -> list[str]:
    """The command that starts an attempt's supervisors on the hosts that SLURM_HOSTFILE lists, a rank a line. Pure.

    Binding is off: the supervisor pins. A rank that fails or a node that dies ends nothing by itself: the launcher
    tells the others to save first.
    """
    return ["srun", "--overlap", "--overcommit", f"--nodes={num_nodes}", f"--ntasks={num_ranks}",
            "--distribution=arbitrary", "--cpu-bind=none", "--kill-on-bad-exit=0", "--no-kill", "--export=ALL",
            f"--input={'0' if attached else 'none'}", *supervisor]


def run_job(folder: JobFolder) -> int:
    """Run the job of a folder inside the batch job that Slurm has started for it; the exit code."""
    allocation = os.environ.get("SLURM_JOB_ID")
    if allocation is None:
        raise WorldError("this is no job of Slurm's", "nothing was started", "use `launch submit` or sbatch")
    if task := os.environ.get("SLURM_ARRAY_TASK_ID"):
        folder = JobFolder(folder.path / f"task-{int(task)}")
    signal.signal(signal.SIGUSR1, lambda *_: None)  # between two attempts nothing is left to save
    return _run(folder, allocation, False)


def _run(folder: JobFolder, allocation: str, all_output: bool) -> int:
    job = folder.job()
    cluster = validate(Cluster, job.cluster, f"the job {folder.path}")
    requeue = cluster.slurm.requeue and not job.attached
    hosts = _hosts(allocation)
    if len(hosts) < len(job.counts):
        raise WorldError(f"the job wants {counted(len(job.counts), 'node')}, "
                         f"but Slurm's job {allocation} has {len(hosts)}",
                         "nothing was started", "lower --nodes, or ask Slurm for more")
    restarts = Restarts(cluster.restarts, cluster.restart_wait_s)
    while True:
        chosen = tuple(hosts[:len(job.counts)])
        start = Start(chosen, job.counts[:len(chosen)], chosen[0], meeting_port())
        number, began = folder.begin(start), time.monotonic()
        say(f"attempt {number} on {', '.join(chosen)}")
        starter = _starter(folder, number, job, allocation, start)
        outcome = run_attempt(folder, number, starter, start_s=cluster.start_s, grace_s=cluster.grace_s,
                              stop_grace_s=cluster.stop_grace_s, all_output=all_output, elastic=cluster.elastic)
        codes = _codes(folder, number, start.size)
        if set(codes) == {0} or (cluster.elastic and 0 in codes and not outcome.stopped):
            return 0
        if outcome.stopped:
            return _stopped(outcome, allocation, requeue)
        failed = outcome.code or 128 + signal.SIGTERM
        if _is_preempted(allocation):
            return _requeue(allocation, "preempted", failed) if requeue else failed
        silent = {host for host, code in zip(_host_of_ranks(start), codes, strict=True) if code is None}
        # Spares are asked as well: one that died meanwhile should not cost an attempt.
        dead = _dead(allocation, [*sorted(silent), *hosts[len(chosen):]]) if silent else []
        if silent.isdisjoint(dead):
            end = restarts.after(outcome, time.monotonic() - began, STOPS)
            if end is None:
                continue
            return _stopped(end, allocation, requeue) if end.stopped else failed
        hosts = [host for host in hosts if host not in dead]
        say(f"{', '.join(dead)} starts no process and is given up")
        if not hosts or (len(hosts) < len(job.counts) and not cluster.elastic):
            return _requeue(allocation, "no spare node is left", failed) if requeue else failed


def _stopped(outcome: Outcome, allocation: str, requeue: bool) -> int:
    if outcome.stopped == signal.SIGUSR1 and requeue:
        return _requeue(allocation, "the time limit is near", outcome.code)
    return outcome.code


def _starter(folder: JobFolder, number: int, job: Job, allocation: str, start: Start) -> Starter:
    listed = folder.attempt(number) / "hosts"
    with storage_errors(f"{listed} could not be written", "nothing was started"):
        listed.write_text("".join(f"{host}\n" for host in _host_of_ranks(start)))
    argv = srun_argv(len(start.hosts), start.size, supervisor_argv(folder.path, str(number)), job.attached)
    # On SIGTERM srun kills; SIGUSR1 it passes on.
    return Starter(tuple(argv), {**_environment(allocation), "SLURM_HOSTFILE": str(listed)}, signal.SIGUSR1)


def _environment(allocation: str) -> dict[str, str]:
    return {**{name: value for name, value in os.environ.items() if not OF_SRUN.fullmatch(name)},
            "SLURM_JOB_ID": allocation}


def _host_of_ranks(start: Start) -> list[str]:
    return [host for host, count in zip(start.hosts, start.counts, strict=True) for _ in range(count)]


def _codes(folder: JobFolder, number: int, size: int) -> list[int | None]:
    """Exit code of each rank; None for one that told none."""
    reports = folder.reports(number)
    return [reports[rank].code if rank in reports else None for rank in range(size)]


def _hosts(allocation: str) -> list[str]:
    """The hosts of an allocation, in Slurm's order."""
    code, listed, words = ask("squeue", "--noheader", f"--jobs={allocation}", "--format=%N")
    if not code and listed.strip():
        code, out, words = ask("scontrol", "show", "hostnames", listed.strip())
        if not code and out.split():
            return out.split()
    raise WorldError(f"Slurm does not tell the nodes of job {allocation}: {words}", "nothing was started",
                     "check `scontrol show job`")


def _is_preempted(allocation: str) -> bool:
    """Whether another job has pushed this one off, so that it is in its time of grace."""
    _, out, _ = ask("scontrol", "show", "job", allocation)
    return re.search(r"\bPreemptTime=\d", out) is not None


def _dead(allocation: str, hosts: Sequence[str]) -> list[str]:
    """Those of ``hosts`` on which srun starts nothing."""
    probes = {host: subprocess.Popen(
        ["srun", "--overlap", "--overcommit", "--no-kill", "--nodes=1", "--ntasks=1", f"--nodelist={host}",
         "--cpu-bind=none", "--input=none", "true"], env=_environment(allocation), start_new_session=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) for host in hosts}
    deadline = time.monotonic() + PROBE_S
    dead = []
    for host, probe in probes.items():
        try:
            if probe.wait(max(0.0, deadline - time.monotonic())) != 0:
                dead.append(host)
        except subprocess.TimeoutExpired:
            dead.append(host)
            probe.kill()
            probe.wait()
    return dead


def _requeue(allocation: str, why: str, code: int) -> int:
    """Have Slurm put this job back into its queue, and wait for the signal that ends this process."""
    refused, _, words = ask("scontrol", "requeue", allocation)
    if refused:
        say(f"{why}, but Slurm does not requeue the job: {words}")
        return code
    say(f"{why}: requeued; the job goes on when Slurm starts it again")
    time.sleep(REQUEUED_S)
    return code


def _allocate(argv: Sequence[str], inbox: int) -> tuple[str, int]:
    """(the number of a new allocation, 0), or ("", the signal that came while it was waited for)."""
    process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                               text=True, errors="replace", start_new_session=True)
    stopped = 0
    try:
        while process.poll() is None:
            for number in os.read(inbox, 4096) if _readable(inbox) else b"":
                if number in STOPS and not stopped:
                    stopped = number
                    process.send_signal(signal.SIGINT)  # takes the request back
    finally:
        if process.poll() is None:
            process.kill()
    words = process.communicate()[1]
    found = re.search(r"Granted job allocation (\d+)", words)
    if found and stopped:
        ask("scancel", found[1])
    if stopped:
        return "", stopped
    if process.returncode or not found:
        lines = [line.removeprefix("salloc: ").removeprefix("error: ") for line in words.splitlines()]
        raise WorldError(f"Slurm refused the job: {printable('; '.join(lines))}", "nothing was started",
                         "check slurm: in the cluster file, and --nodes")
    return found[1], 0


def _readable(fd: int) -> bool:
    import select

    return bool(select.select([fd], [], [], 0.2)[0])


@contextlib.contextmanager
def _ending_with_us(allocation: str) -> Iterator[None]:
    """Give an allocation back at the end, even if this process is killed with -9."""
    read, write = os.pipe2(os.O_CLOEXEC)
    try:
        # In the background of a shell, so that it is no child of this process, which ends all that it adopts.
        subprocess.run(["sh", "-c", 'exec 3<&0; (read -r _ <&3 || exec scancel "$0") &', allocation], stdin=read,
                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True, check=True)
        yield
    finally:
        ask("scancel", allocation)
        os.write(write, b"done\n")
        os.close(write)
        os.close(read)
