"""Jobs from submission to end: the verbs submit, status, logs and cancel, the same for every launcher.

Slurm keeps its jobs itself (slurm.py). Others run below a process of their own, ``launch batch``, that outlives
the shell; it is known by its pid, the time of its start and its host.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distrib.entry import put
from distrib.errors import WorldError, printable
from launch.job import JobFolder, Start

if TYPE_CHECKING:
    from launch.plan import Plan

LOOK_S = 0.3


def create_job(plan: Plan, path: Path | None, *, attached: bool) -> JobFolder:
    """Make a plan's job folder; by default a new one in ./launch-jobs. Raises StorageError."""
    if path is None:
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", plan.cluster.name).strip("-.")[:40] or "job"
        path = Path("launch-jobs", f"{name}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}")
    folder = JobFolder(path.absolute())
    folder.create(plan.job(attached=attached))
    return folder


def submit_plan(plan: Plan, path: Path | None, as_json: bool) -> int:
    """Submit a plan and print its job folder on stdout."""
    if plan.cluster.launcher == "slurm":
        from launch.slurm import submit
    else:
        submit = _submit_here
    folder = create_job(plan, path, attached=False)
    record = submit(plan, folder)
    folder.write(folder.submitted, record)
    put(json.dumps({"job": str(folder.path), **record}) if as_json else str(folder.path))
    return 0


def _submit_here(plan: Plan, folder: JobFolder) -> dict[str, Any]:
    with folder.launch_log.open("ab") as log:
        process = subprocess.Popen([sys.executable, "-m", "launch", "batch", str(folder.path)], stdin=subprocess.DEVNULL,
                                   stdout=log, stderr=log, start_new_session=True)
    return {"launcher": plan.cluster.launcher, "pid": process.pid, "host": socket.gethostname(),
            "started": _start_time(process.pid)}
