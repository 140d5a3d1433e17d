"""The process that outlives a launcher killed with -9, to kill what its ranks leave behind.

    python -I -S guard.py < PIPE

The launcher writes the process group of each rank to the pipe, a number a line, and at its regular end kills this
program. If the launcher is gone, the pipe ends. Ranks die by themselves then (see rank.py); their children do not.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys


def main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    groups = [int(line) for line in sys.stdin]
    for group in groups:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal.SIGKILL)


if __name__ == "__main__":
    main()
