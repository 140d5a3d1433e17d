"""`distrib train` in a process of its own, over some of this machine's cores, by the launcher."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import IO

from distrib.children import seat
from distrib.config import Experiment
from distrib.signals import stops_answered_by
from distrib.world import without_world

CLUSTER = b"launcher: local\n"
"""The cluster file of this machine."""


def num_ranks(experiment: Experiment, num_cores: int) -> int:
    """Ranks that a training has on so many cores."""
    return max(1, min(experiment.train.lanes, num_cores // experiment.train.threads))


def start_training(words: Sequence[str | Path], cluster: Path, ranks: int, cpus: Sequence[int],
                   stderr: IO[bytes] | None = None) -> subprocess.Popen[bytes]:
    """Start `distrib train WORDS` with so many ranks on these hardware threads, pinned; its result goes nowhere.

    It must be called by a thread that lives as long as the process may: at its end the training saves and ends.
    Raises OSError.
    """
    command = [sys.executable, "-m", "distrib", "train", *map(str, words)]
    launch = [sys.executable, "-m", "launch", "run", str(cluster), "--ranks", str(ranks), "--", *command]
    seated = [sys.executable, "-I", "-S", seat.__file__, str(os.getpid()), ",".join(map(str, cpus)), "--", *launch]
    # A session of its own: Ctrl-C is for this process, which then ends its trainings in order.
    return subprocess.Popen(seated, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=stderr,
                            env=without_world(os.environ), start_new_session=True)


@contextlib.contextmanager
def stop_requests() -> Iterator[Callable[[], int]]:
    """The signal that asked for a stop, or 0; below 0 after a second Ctrl-C."""
    wanted = 0

    def ask(number: int, _: FrameType | None) -> None:
        nonlocal wanted
        wanted = -number if number == signal.SIGINT and wanted == number else wanted or number

    with stops_answered_by(ask):
        yield lambda: wanted
