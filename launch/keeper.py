"""Who runs a job: what its launcher says of itself in the job's folder, and whether it still lives.

A process is known by its pid, the time of its start, and the kernel and pid namespace that count it. Who counts by
others can not see it, but the age of the file: a launcher touches it every BEAT_S.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from distrib.errors import StorageError
from launch.job import JobFolder
from launch.processes import stat_fields

BEAT_S = 15.0
SILENT_S = 180.0
"""From so old a sign on, a launcher is taken for gone. Network file systems show a new one after up to a minute."""


def identity(pid: int) -> dict[str, Any]:
    """What tells a living process of this host from all others."""
    return {"pid": pid, "host": socket.gethostname(), "counted_by": _counter(), "started": _start_time(pid)}


@contextlib.contextmanager
def keeping(folder: JobFolder) -> Iterator[None]:
    """Let a job's folder say that this process runs the job, until the end of the block. Raises StorageError."""
    record = identity(os.getpid())
    folder.write(folder.keeper, record)
    over = threading.Event()
    threading.Thread(target=_beat, args=(folder.keeper, over), daemon=True).start()
    try:
        yield
    finally:
        over.set()
        with contextlib.suppress(StorageError):  # then the job is said to be lost, which is less than it should say
            folder.write(folder.keeper, {**record, "ended": time.time()})


def is_visible(record: Mapping[str, Any]) -> bool:
    """Whether a recorded process, if it lives, is among those that this one can see and signal."""
    return bool(record.get("counted_by")) and record["counted_by"] == _counter()


def is_gone(path: Path, record: Mapping[str, Any]) -> bool:
    """Whether the process of a record, which the file ``path`` holds, lives no more, or gives no more sign of life."""
    if is_visible(record):
        pid, started = record.get("pid"), record.get("started")
        return not isinstance(pid, int) or started is None or _start_time(pid) != started
    try:
        return time.time() - path.stat().st_mtime > SILENT_S
    except OSError:
        return False


def _beat(path: Path, over: threading.Event) -> None:
    while not over.wait(BEAT_S):
        with contextlib.suppress(OSError):
            os.utime(path)


def _start_time(pid: int) -> str | None:
    """When a process started, in the kernel's ticks since its boot; None if it does not live."""
    try:
        fields = stat_fields(pid)
    except OSError:
        return None
    return None if fields[0] == "Z" else fields[19]


def _counter() -> str:
    """The boot of this machine, and the pid namespace in it; empty where it is not told."""
    try:
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""
