"""Jobs from submission to end: the verbs submit, status and cancel, the same for every launcher.

Slurm keeps its jobs itself (slurm.py). Others run below a process of their own, ``launch batch``, that outlives
the shell; it is known by its pid, the time of its start and its host.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distrib.entry import put
from distrib.errors import ConfigError, StorageError, WorldError
from launch.job import JobFolder
from launch.processes import stat_fields

if TYPE_CHECKING:
    from launch.plan import Plan


def create_job(plan: Plan, path: Path | None, *, attached: bool) -> JobFolder:
    """Make a plan's job folder; by default a new one in ./launch-jobs. Raises StorageError."""
    if path is None:
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", plan.cluster.name).strip("-.")[:40] or "job"
        path = Path("launch-jobs", f"{name}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}")
    folder = JobFolder(path.absolute())
    folder.create(plan.job(attached=attached))
    return folder


def submit_plan(plan: Plan, path: Path | None, as_json: bool, array: str | None = None,
                after: Sequence[str] = ()) -> int:
    """Submit a plan and print its job folder on stdout. Raises ConfigError, WorldError."""
    from launch.sbatch import array_tasks, earlier_jobs, submit

    slurm = plan.cluster.launcher == "slurm"
    if not slurm and (array or after):
        raise ConfigError(f"--array and --after are Slurm's; the cluster file says launcher: {plan.cluster.launcher}",
                          "nothing was submitted", "leave them out")
    tasks, earlier = array_tasks(array) if array else [], earlier_jobs(after)
    folder = create_job(plan, path, attached=False)
    record = submit(plan, folder, tasks, array, earlier) if slurm else _submit_here(plan, folder)
    try:
        folder.write(folder.submitted, record)
    except StorageError:  # nobody could ask for it, or cancel it
        _cancel(folder, record)
        raise
    put(json.dumps({"job": str(folder.path), **record}) if as_json else str(folder.path))
    return 0


def _submit_here(plan: Plan, folder: JobFolder) -> dict[str, Any]:
    with folder.launch_log.open("ab") as log:
        process = subprocess.Popen([sys.executable, "-m", "launch", "batch", str(folder.path)], stdout=log, stderr=log,
                                   stdin=subprocess.DEVNULL, start_new_session=True)
    return {"launcher": plan.cluster.launcher, "pid": process.pid, "host": socket.gethostname(),
            "started": _start_time(process.pid)}


def show_status(path: Path, as_json: bool) -> int:
    """Print how a job is doing; exit code 0, however it does."""
    folder = JobFolder(path.absolute())
    document = describe_job(folder)
    if as_json:
        put(json.dumps(document, indent=2))
    else:
        from launch.show import show_job

        show_job(document)
    return 0


def describe_job(folder: JobFolder) -> dict[str, Any]:
    """A job as plain values: state, attempt, and each rank's host, cores and ending."""
    job, number = folder.job(), folder.last_attempt()
    state = job_state(folder)
    ranks = []
    if number:
        start, reports = folder.start(number), folder.reports(number)
        endings = {ending.rank: ending for ending in folder.endings(number, reports)}
        for rank in range(start.size):
            report, ending = reports.get(rank), endings.get(rank)
            ranks.append({
                "rank": rank, "host": report.host if report else start.hosts[start.node_of(rank)],
                "cpus": report.cpus if report else None, "memory_node": report.memory_node if report else None,
                "state": "ended" if ending else "running" if report and state["running"] else
                         "lost" if report else "waiting" if state["running"] else "never started",
                "code": ending.code if ending else None, "error": ending.error if ending else "",
            })
    return {"job": str(folder.path), "name": job.name, "launcher": job.launcher, "command": list(job.command),
            "state": state["state"], "reason": state.get("reason", ""), "attempt": number, "ranks": ranks}


def job_state(folder: JobFolder) -> dict[str, Any]:
    """{"state": waiting | running | ended ..., "running": whether it may yet go on, "reason": why, if known}."""
    record = folder.submitted_record()
    if record is None:
        number = folder.last_attempt()
        reports = folder.reports(number) if number else {}
        ended = number > 0 and sum(r.code is not None for r in reports.values()) == folder.start(number).size
        return {"state": "ended" if ended else "started by hand", "running": not ended}
    if record["launcher"] == "slurm":
        from launch.sbatch import state

        return state(folder, record)
    if record["host"] != socket.gethostname():
        return {"state": f"submitted on {record['host']}, where alone its process can be seen", "running": True}
    alive = _start_time(record["pid"]) == record["started"]
    return {"state": "running" if alive else "ended", "running": alive}


def cancel_job(path: Path) -> int:
    """Ask a job to end."""
    folder = JobFolder(path.absolute())
    record = folder.submitted_record()
    if record is None:
        raise WorldError(f"{folder.path} was not submitted", "nothing was cancelled",
                         "end it where `launch run` runs, with Ctrl-C")
    put(f"{folder.path}: {_cancel(folder, record)}")
    return 0


def _cancel(folder: JobFolder, record: dict[str, Any]) -> str:
    """Ask a job to end; what came of it."""
    if record["launcher"] == "slurm":
        from launch.sbatch import cancel

        cancel(record)
    elif record["host"] != socket.gethostname():
        raise WorldError(f"the job runs below a process of {record['host']}", "nothing was cancelled",
                         f"cancel it on {record['host']}")
    elif _start_time(record["pid"]) == record["started"]:
        try:
            os.kill(record["pid"], signal.SIGTERM)
        except OSError as error:
            raise WorldError(f"process {record['pid']} of {folder.path} can not be ended: {error.strerror}",
                             "the job goes on", "cancel it as the user who submitted it") from error
    else:
        return "has ended already"
    return "asked to end"


def _start_time(pid: int) -> str | None:
    """When a process started, in the kernel's ticks; None if there is none. With the pid it names one process."""
    try:
        fields = stat_fields(pid)
    except OSError:
        return None
    return None if fields[0] == "Z" else fields[19]
