"""Reading single images out of shards, checked."""

from __future__ import annotations

import os
import threading
import zlib
from collections import OrderedDict
from pathlib import Path
from types import TracebackType

from distrib.data.manifest import SplitSamples
from distrib.errors import ShardError


class ShardReader:
    """Reads encoded images of a split by position; safe to call from many threads.

    Keeps at most ``max_open`` shards open, closing the one used longest ago. Reads do not move a file
    position and load nothing but the image asked for.
    """

    def __init__(self, folder: Path, samples: SplitSamples, max_open: int = 64) -> None:
        self._folder, self._samples, self._max_open = folder, samples, max_open
        self._open: OrderedDict[int, _Handle] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, sample: int) -> bytes:
        """The encoded image. Raises ShardError naming shard, key and offset."""
        number, position = self._samples.locate(sample)
        shard = self._samples.shards[number]
        offset, length = shard.index.offset[position], shard.index.length[position]
        handle = self._acquire(number)
        try:
            content = _pread(handle.fd, length, offset)
        except OSError as error:
            raise self.error(sample, f"can not be read: {error.strerror}",
                             "check the file system that holds the dataset") from error
        finally:
            self._release(handle)
        if len(content) != length:
            raise self.error(sample, f"is cut off: {length - len(content)} of {length} bytes are missing")
        if zlib.crc32(content) != shard.index.crc32[position]:
            raise self.error(sample, "does not match its checksum: bytes changed since it was prepared")
        return content

    def kind(self, sample: int) -> str:
        """How the image is encoded: jpg or png."""
        number, position = self._samples.locate(sample)
        return self._samples.shards[number].index.kind[position]

    def error(self, sample: int, what: str, remedy: str = "") -> ShardError:
        """A ShardError about one sample."""
        number, position = self._samples.locate(sample)
        shard = self._samples.shards[number]
        return ShardError(
            f"sample {shard.index.key[position]!r} at byte {shard.index.offset[position]} of shard "
            f"{self._folder / shard.name} {what}",
            "stopped rather than go on with wrong data",
            remedy or f"see what else is wrong with `distrib inspect {self._folder}`, then restore the shard or "
            "prepare the dataset again",
        )

    def close(self) -> None:
        """Close every shard."""
        with self._lock:
            while self._open:
                self._open.popitem()[1].retire()

    def __enter__(self) -> ShardReader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()

    def _acquire(self, number: int) -> _Handle:
        with self._lock:
            handle = self._open.get(number)
            if handle is None:
                path = self._folder / self._samples.shards[number].name
                try:
                    handle = _Handle(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
                except OSError as error:
                    raise ShardError(f"shard {path} can not be opened: {error.strerror}", "its samples are missing",
                                     "restore the file, or prepare the dataset again") from error
                self._open[number] = handle
                if len(self._open) > self._max_open:
                    self._open.popitem(last=False)[1].retire()
            self._open.move_to_end(number)
            handle.users += 1
            return handle

    def _release(self, handle: _Handle) -> None:
        with self._lock:
            handle.users -= 1
            if handle.retired and not handle.users:
                os.close(handle.fd)


class _Handle:
    """An open file, closed when it is retired and nobody reads from it. Guarded by the reader's lock."""

    def __init__(self, fd: int) -> None:
        self.fd, self.users, self.retired = fd, 0, False

    def retire(self) -> None:
        self.retired = True
        if not self.users:
            os.close(self.fd)


def _pread(fd: int, length: int, offset: int) -> bytes:
    """os.pread that goes on after a short read; shorter than ``length`` only at the end of the file."""
    content = os.pread(fd, length, offset)
    while len(content) < length and (more := os.pread(fd, length - len(content), offset + len(content))):
        content += more
    return content
