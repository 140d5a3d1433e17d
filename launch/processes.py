"""Processes below this one: those that its children left behind are adopted, and none survives it."""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
import sys
import time
from collections.abc import Collection, Iterator
from pathlib import Path

PR_SET_CHILD_SUBREAPER = 36
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - where the kernel keeps it
UNKILLABLE_S = 10.0
"""Wait so long for killed processes; one that hangs in the kernel, as on a dead file server, may never go."""


def adopt_orphans(adopt: bool = True) -> None:
    """Become, or cease to be, the parent of whatever processes below this one orphan."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, int(adopt), 0, 0, 0)


def stat_fields(pid: int) -> list[str]:
    """What the kernel tells of a process, from its state on (the fields of proc(5) from the third). Raises OSError."""
    stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    return stat[stat.rindex(")") + 2:].split()  # the name before may hold anything


def exit_code(pid: int) -> int | None:
    """How a child ended: its exit code, or minus the signal's number; None while it lives. It is not reaped."""
    seen = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    if seen is None:
        return None
    return seen.si_status if seen.si_code == os.CLD_EXITED else -seen.si_status


def children() -> Iterator[tuple[int, str]]:
    """(pid, state) of the direct children of this process."""
    me = str(os.getpid())
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                state, parent = stat_fields(int(entry.name))[:2]
                if parent == me:
                    yield int(entry.name), state


def adopted(known: Collection[int]) -> list[int]:
    """Living children other than ``known``; those that ended are reaped."""
    living = []
    for pid, state in children():
        if pid in known:
            continue
        if state == "Z":
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
        else:
            living.append(pid)
    return living


def signal_group(group: int, number: int) -> None:
    """Send a signal to a process group that may be gone."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def signal_adopted(known: Collection[int], number: int, spare_groups: Collection[int] = ()) -> None:
    """Send a signal to the adopted processes, but for those of groups that get it anyway."""
    for pid in adopted(known):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if os.getpgid(pid) not in spare_groups:
                os.kill(pid, number)


def end_adopted(known: Collection[int], number: int, timeout_s: float) -> bool:
    """Send a signal to adopted processes until none is left or the time is over; whether none is left."""
    deadline = time.monotonic() + timeout_s
    while adopted(known):
        signal_adopted(known, number)
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.01)
    return True


def remove_shared_memory(pid: int) -> None:
    """Give back what a killed process left of libfabric's shared memory (64 MB a rank, named PID:UID:NUMBER).

    Under oneCCL ranks on one host talk through it; a process that ends in order removes its own.
    """
    for left in SHARED_MEMORY.glob(f"{pid}:{os.getuid()}:*"):
        with contextlib.suppress(OSError):
            left.unlink()


@contextlib.contextmanager
def guard_process() -> Iterator[subprocess.Popen[bytes]]:
    """The guard process, and this process as the one that adopts orphans."""
    adopt_orphans()
    guard = subprocess.Popen([sys.executable, "-I", "-S", str(Path(__file__).with_name("guard.py"))],
                             stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        yield guard
    finally:
        guard.kill()  # not by closing its pipe: that would have it kill the groups, whose numbers may be reused
        guard.wait()
        assert guard.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            guard.stdin.close()
        adopt_orphans(False)


def tell_guard(guard: subprocess.Popen[bytes], group: int) -> None:
    """Have the guard kill a process group if this process dies."""
    assert guard.stdin is not None
    with contextlib.suppress(BrokenPipeError):
        guard.stdin.write(f"{group}\n".encode())
        guard.stdin.flush()
