"""Jobs from submission to end: the verbs submit, status and cancel, the same for every launcher.

Slurm keeps its jobs itself (slurm.py). Others run below a process of their own (keeper.py): ``launch run``, or
``launch batch``, which outlives the shell.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distrib.entry import put
from distrib.errors import ConfigError, MissingPartError, StorageError, WorldError, printable
from launch.job import JobFolder
from launch.keeper import identity, is_gone, is_visible

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
    from launch.sbatch import RefusedError, array_tasks, earlier_jobs, submit

    slurm = plan.cluster.launcher == "slurm"
    if not slurm and (array or after):
        raise ConfigError(f"--array and --after are Slurm's; the cluster file says launcher: {plan.cluster.launcher}",
                          "nothing was submitted", "leave them out")
    tasks, earlier = array_tasks(array) if array else [], earlier_jobs(after)
    folder = create_job(plan, path, attached=False)
    try:
        record = submit(plan, folder, tasks, array, earlier) if slurm else _submit_here(plan, folder)
    except (ConfigError, MissingPartError, RefusedError):
        folder.discard()
        raise
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
    return {"launcher": plan.cluster.launcher, **identity(process.pid)}


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
    """{"state": waiting | running | ended | lost ..., "running": whether it may yet go on, "reason": why, if known}."""
    record, path = folder.submitted_record(), folder.submitted
    if record is not None and record.get("launcher") == "slurm":
        from launch.sbatch import state

        return state(folder, record)
    if folder.keeper.exists():
        record, path = folder.read(folder.keeper), folder.keeper
    if record is None:
        return {"state": "lost", "running": False, "reason": "its folder does not tell who runs it"}
    if "ended" in record:
        return {"state": "ended", "running": False}
    if not is_gone(path, record):
        return {"state": "running", "running": True}
    reason = f"its launcher, process {record.get('pid')} on {record.get('host')}, is gone without a last word"
    return {"state": "lost", "running": False, "reason": printable(reason)}


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
    if record.get("launcher") == "slurm":
        from launch.sbatch import cancel

        cancel(record)
    elif not is_visible(record):
        host = printable(str(record.get("host")))
        raise WorldError(f"the job runs below a process of {host}, which can not be seen from here",
                         "nothing was cancelled", f"cancel it on {host}")
    elif not is_gone(folder.submitted, record):
        try:
            os.kill(record["pid"], signal.SIGTERM)
        except OSError as error:
            raise WorldError(f"process {record['pid']} of {folder.path} can not be ended: {error.strerror}",
                             "the job goes on", "cancel it as the user who submitted it") from error
    else:
        return "has ended already"
    return "asked to end"
