"""Real things that tests need for a while: made on entering, ended and removed on leaving, also if half made."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Collection
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self


class Fixture:
    """A context manager of what `_make` makes."""

    def _make(self, undo: ExitStack) -> None:
        """``undo`` takes how each thing is ended or removed, before it is begun; the last is undone first."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        with ExitStack() as undo:
            self._make(undo)
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()


def new_folder(undo: ExitStack, prefix: str) -> Path:
    """A temporary folder; what can not be removed from it in the end stays."""
    return Path(undo.enter_context(TemporaryDirectory(prefix=prefix, ignore_cleanup_errors=True)))


def end(processes: Collection[subprocess.Popen[Any]], limit_s: float) -> None:
    """Ask processes to end, all together; those that live after ``limit_s`` are killed."""
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + limit_s
    for process in processes:
        try:
            process.wait(timeout=max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
