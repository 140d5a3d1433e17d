"""What reaches the launcher itself, signals, and what it says."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from types import FrameType

REPEAT_S = 0.1
"""A signal that comes again within this time is the same one, through a terminal and through a wrapper."""
STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def say(text: str) -> None:
    """One line on stderr, under the launcher's name."""
    show([f"launch: {text}"])


def show(lines: Iterable[str]) -> None:
    """Lines on stderr as they are."""
    for line in lines:
        print(line, file=sys.stderr, flush=True)


@contextlib.contextmanager
def signal_inbox(stops: Sequence[signal.Signals] = STOPS) -> Iterator[int]:
    """A file descriptor from which the numbers of arriving signals are read, a byte each."""
    def ignore(number: int, frame: FrameType | None) -> None:
        """Only wakes the selector."""

    read, write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    before = {}
    wakeup = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    for number in (*stops, signal.SIGCHLD):
        # What the shell has us ignore (nohup, a job in the background) stays ignored.
        if number == signal.SIGCHLD or signal.getsignal(number) != signal.SIG_IGN:
            before[number] = signal.signal(number, ignore)
    try:
        yield read
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(wakeup)
        os.close(read)
        os.close(write)


def wait_for_stop(inbox: int, seconds: float, stops: Sequence[signal.Signals] = STOPS) -> int:
    """Wait so long; the number of the signal that asks to stop meanwhile, or 0."""
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        if select.select([inbox], [], [], left)[0]:
            for number in os.read(inbox, 4096):
                if number in stops:
                    return number
    return 0
