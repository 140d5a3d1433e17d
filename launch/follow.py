"""Logs that grow, passed on to stderr while they do."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path


class Follower:
    """Passes on what ranks append to their logs, each line with its rank before it.

    ``logs``: (rank, path, byte offset to begin at); a file may not be there yet.
    """

    def __init__(self, logs: Sequence[tuple[int, Path, int]]) -> None:
        self._logs = [(rank, path) for rank, path, _ in logs]
        self._ends = {path: start for _, path, start in logs}
        self._rests = dict.fromkeys(self._ends, b"")

    def pass_on(self) -> None:
        """The whole lines that are new. Raises nothing."""
        for rank, path in self._logs:
            try:
                with path.open("rb") as file:
                    file.seek(self._ends[path])
                    *lines, rest = (self._rests[path] + file.read()).split(b"\n")
                    self._ends[path] = file.tell()
            except OSError:
                continue
            self._rests[path] = rest
            _write(b"".join(f"[rank {rank}] ".encode() + line + b"\n" for line in lines))

    def finish(self) -> None:
        """Pass on last lines without an end."""
        for rank, path in self._logs:
            if rest := self._rests[path]:
                _write(f"[rank {rank}] ".encode() + rest + b"\n")
                self._rests[path] = b""


def _write(content: bytes) -> None:
    with contextlib.suppress(OSError):
        sys.stderr.flush()
        sys.stderr.buffer.write(content)
        sys.stderr.buffer.flush()
