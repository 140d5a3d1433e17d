"""The small program that becomes a rank: it pins itself, ties its life to the launcher's, and execs the command.

    python -I -S rank.py [--cpus=0-3] [--memory-node=0] [--parent=PID] [--ignore=SIGNAL] -- PROGRAM ARGUMENT...

It runs once for each rank before every start, so it imports nothing but what it needs of the standard library.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import time
from typing import NoReturn

PR_SET_PDEATHSIG = 1
MPOL_PREFERRED = 1
SYS_SET_MEMPOLICY = {"x86_64": 238, "aarch64": 237, "riscv64": 237, "ppc64le": 261, "s390x": 269}


def main(words: list[str]) -> NoReturn:
    # An interrupt before the exec should end this program quietly, not with a traceback of Python's.
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    split = words.index("--")
    options = dict(word.removeprefix("--").split("=", 1) for word in words[:split])
    command = words[split + 1:]
    if "ignore" in options:
        signal.signal(int(options["ignore"]), signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())  # a supervisor blocks some
    if "parent" in options:
        _end_with(int(options["parent"]))
    if "cpus" in options:
        try:
            os.sched_setaffinity(0, _parse_list(options["cpus"]))
        except OSError as error:
            _fail(f"rank {os.environ.get('RANK', '?')} can not be pinned to CPUs {options['cpus']}: {error.strerror}. "
                  "The rank was not started. The CPUs allowed to this job changed; start it again.")
    if "memory-node" in options:
        _prefer_memory(int(options["memory-node"]))
    try:
        os.execv(command[0], command)  # noqa: S606 - no shell is the point
    except OSError as error:
        _fail(f"the command {command[0]} can not be executed: {error.strerror}. The rank was not started. "
              "If it is a script, begin it with #! and its interpreter.")


def _end_with(parent: int) -> None:
    """Have the kernel kill this process, also after the exec, when the launcher is gone.

    SIGKILL and not SIGTERM: who kills the launcher with -9 wants an end, and nobody is left who could insist.
    Checkpoints are whole or absent, so nothing is lost but the steps since the last.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it died before the call
        os.kill(os.getpid(), signal.SIGKILL)


def _prefer_memory(node: int) -> None:
    """Take memory from one NUMA node while it has some, whatever policy the launcher was started under."""
    libc = ctypes.CDLL(None, use_errno=True)
    number = SYS_SET_MEMPOLICY.get(os.uname().machine)
    bits = ctypes.sizeof(ctypes.c_ulong) * 8
    mask = (ctypes.c_ulong * (node // bits + 1))()
    mask[node // bits] = 1 << node % bits
    # The kernel reads one bit less than it is told.
    if number is None or libc.syscall(number, MPOL_PREFERRED, mask, ctypes.c_ulong(len(mask) * bits + 1)):
        # Containers often forbid the call. Pinned threads get memory of their own node by default as well.
        why = os.strerror(ctypes.get_errno()) if number else "unknown processor"
        print(f"launch: rank {os.environ.get('RANK', '?')}: memory node {node} could not be preferred ({why}); "
              "the kernel chooses", file=sys.stderr)


def _parse_list(text: str) -> set[int]:
    cpus: set[int] = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        cpus.update(range(int(first), int(last or first) + 1))
    return cpus


def _fail(message: str) -> NoReturn:
    """End as a rank ends for bad input: one line, exit code 2, and the line where the launcher looks for it."""
    print(f"error: {message}", file=sys.stderr)
    if path := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        with open(path, "w") as file:
            json.dump({"message": message, "timestamp": str(int(time.time()))}, file)
    sys.exit(2)


if __name__ == "__main__":
    main(sys.argv[1:])
