"""A file that grows by records, each of them there whole or not at all, on storage that may fail."""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Callable
from pathlib import Path

from distrib.errors import StorageError, counted, storage_errors


class RecordFile:
    """Appends records at once. Those that the storage refuses are dropped: it is told once, the next are tried now and
    then, and when one gets through it is told how many are missing."""

    def __init__(self, path: Path, tell: Callable[[str], None], retry_s: float = 1.0) -> None:
        """Opens or makes the file. ``retry_s``: the time between tries, times 10 for each second that one took.
        Raises OSError."""
        self._path, self._tell, self._retry_s = path, tell, retry_s
        self._fd: int | None = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self._next_try, self._missing = 0.0, 0

    def append(self, record: bytes) -> None:
        """Raises nothing."""
        began = time.monotonic()
        if self._missing and began < self._next_try:
            self._missing += 1
            return
        try:
            with storage_errors(f"{self._path} could not be written",
                                "training goes on; its records are dropped until it can be"):
                self._write(record)
        except StorageError as error:
            if not self._missing:
                self._tell(f"warning: {error.one_line()}")
            self._missing += 1
            self._forget()  # a file system that was mounted anew knows the old descriptor no more
            # A network file system may take minutes to refuse: trying takes a tenth of the time at most.
            now = time.monotonic()
            self._next_try = now + self._retry_s * max(1.0, 10 * (now - began))
        else:
            if self._missing:
                self._tell(f"note: {self._path} can be written again; "
                           f"{counted(self._missing, 'record is', 'records are')} missing from it")
            self._missing = 0

    def close(self) -> None:
        """Raises nothing."""
        self._forget()
        if self._missing:
            self._tell(f"warning: {counted(self._missing, 'record is', 'records are')} "
                       f"missing at the end of {self._path}")
            self._missing = 0

    def _write(self, record: bytes) -> None:
        if self._fd is None:  # made once: a folder that is gone, or stands in for a mount, gets no new file
            self._fd = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        status = os.fstat(self._fd)
        if not status.st_nlink:
            raise FileNotFoundError(errno.ENOENT, "it was removed")
        done = 0
        try:
            while done < len(record):
                done += os.write(self._fd, record[done:])
        except OSError:
            if done:
                os.ftruncate(self._fd, status.st_size)
            raise

    def _forget(self) -> None:
        if self._fd is not None:
            with contextlib.suppress(OSError):
                os.close(self._fd)
            self._fd = None
