"""Writing samples into WebDataset shards, the same bytes for the same samples."""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
import zlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from distrib.data.manifest import Shard, ShardIndex, Split

_BLOCK = 512


@dataclass
class _Columns:
    key: list[str] = field(default_factory=list)
    kind: list[Literal["jpg", "png"]] = field(default_factory=list)
    offset: list[int] = field(default_factory=list)
    length: list[int] = field(default_factory=list)
    crc32: list[int] = field(default_factory=list)
    label: list[int] = field(default_factory=list)
    group: list[str] = field(default_factory=list)


class ShardWriter:
    """Writes one split as ``SPLIT-000000.tar`` and on, of a later version of a dataset as ``v2-SPLIT-000000.tar``; a
    shard ends at so many samples or bytes, whichever is first. A file that exists is not written over.

    Plain tarfile headers rather than webdataset.TarWriter: that one does not say where a sample lies, and
    importing it imports torch. Methods raise OSError.
    """

    def __init__(self, folder: Path, split: Split, max_samples: int, max_bytes: int, version: int = 1) -> None:
        self._folder, self._split, self._max_samples, self._max_bytes = folder, split, max_samples, max_bytes
        self._version = version
        self.shards: list[Shard] = []
        """Those that are complete."""
        self._open = False

    def add(self, key: str, kind: Literal["jpg", "png"], content: bytes, label: int, group: str,
            record: Mapping[str, Any]) -> None:
        """Append a sample; ``record`` becomes its JSON member."""
        members = ((kind, content), ("cls", str(label).encode()),
                   ("json", json.dumps(record, ensure_ascii=False, sort_keys=True).encode()))
        size = sum(_BLOCK + _padded(len(body)) for _, body in members)
        if self._open and (len(self._columns.key) >= self._max_samples or self._bytes + size > self._max_bytes):
            self._close_shard()
        if not self._open:
            self._open_shard()
        columns = self._columns
        columns.key.append(key)
        columns.kind.append(kind)
        columns.offset.append(self._bytes + _BLOCK)
        columns.length.append(len(content))
        columns.crc32.append(zlib.crc32(content))
        columns.label.append(label)
        columns.group.append(group)
        for extension, body in members:
            self._write(_header(f"{key}.{extension}", len(body)) + body + bytes(_padded(len(body)) - len(body)))

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        """Finish the last shard, so that all in ``shards`` are on disk; after an error only close its file."""
        if self._open and error is None:
            self._close_shard()
        elif self._open:
            # What is buffered may no longer fit on the disk; the error that matters is under way already.
            with suppress(OSError):
                self._file.close()

    def _open_shard(self) -> None:
        prefix = f"v{self._version}-" if self._version > 1 else ""
        self._name = f"{prefix}{self._split}-{len(self.shards):06d}.tar"
        self._file = (self._folder / self._name).open("xb")
        self._columns, self._bytes, self._digest, self._open = _Columns(), 0, hashlib.sha256(), True

    def _write(self, piece: bytes) -> None:
        self._file.write(piece)
        self._digest.update(piece)
        self._bytes += len(piece)

    def _close_shard(self) -> None:
        # Two empty blocks end an archive, and tar fills up its last record of 20 blocks.
        end = self._bytes + 2 * _BLOCK
        self._write(bytes(2 * _BLOCK + -end % tarfile.RECORDSIZE))
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._open = False
        columns = {name: tuple(column) for name, column in vars(self._columns).items()}
        self.shards.append(Shard(name=self._name, split=self._split, num_samples=len(self._columns.key),
                                 bytes=self._bytes, sha256=self._digest.hexdigest(), version=self._version,
                                 index=ShardIndex(**columns)))


def _padded(length: int) -> int:
    return length + -length % _BLOCK


def _header(name: str, size: int) -> bytes:
    """One tar header with nothing of this machine or this hour in it."""
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.mtime = size, 0o644, 0
    return info.tobuf(tarfile.USTAR_FORMAT)
