"""The small program that becomes a trial's launcher: it keeps to its CPUs, and stops in order if the study dies.

    python -I -S seat.py PARENT CPU,CPU,... -- PROGRAM ARGUMENT...

It runs before every start of a trial, so it imports nothing but what it needs of the standard library.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from typing import NoReturn

PR_SET_PDEATHSIG = 1


def main(words: list[str]) -> NoReturn:
    parent, cpus, _, *command = words
    # SIGTERM: the training saves, and whoever goes on with the study goes on from there.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != int(parent):  # it died before the call
        sys.exit(128 + signal.SIGTERM)
    os.sched_setaffinity(0, {int(cpu) for cpu in cpus.split(",")})
    os.execv(command[0], command)  # noqa: S606 - no shell is the point


if __name__ == "__main__":
    main(sys.argv[1:])
