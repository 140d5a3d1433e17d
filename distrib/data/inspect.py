"""Is a dataset what it was when it was prepared? Every byte of every shard is read and compared."""

from __future__ import annotations

import hashlib
import os
import tarfile
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from distrib.data.manifest import Shard, load_manifest
from distrib.data.report import Progress, dataset_report, say, show_report
from distrib.data.workers import allowed_cores
from distrib.errors import ShardError

_PIECE = 1 << 22
_BLOCK = 512

Damage = dict[str, Any]
"""What is wrong: shard, and where it is one sample, key and offset; reason."""


def inspect_dataset(folder: Path, *, verify: bool = True) -> dict[str, Any]:
    """The dataset's report, with everything that is damaged in ``damaged``.

    With ``verify`` each shard is read once: its SHA-256, each image's CRC-32, and that a tar header of the
    right size precedes each image. Without, only presence and sizes are checked. Raises ManifestError.
    """
    manifest = load_manifest(folder)
    damaged: list[Damage] = []
    with Progress("verifying shards", len(manifest.shards)) as progress, ThreadPoolExecutor(allowed_cores()) as pool:
        check = _verify if verify else _measure
        for found in pool.map(lambda shard: list(check(folder, shard)), manifest.shards):
            damaged += found
            progress.advance(1)
    return {"dataset": str(folder), "verified": verify, **dataset_report(manifest), "damaged": damaged}


def run_inspect(folder: Path, *, verify: bool = True) -> dict[str, Any]:
    """Show the dataset as a table on stderr and return its report. Raises ShardError after listing all damage."""
    report = inspect_dataset(folder, verify=verify)
    show_report(f"dataset {folder}", report)
    damaged = report["damaged"]
    for item in damaged:
        where = f" sample {item['key']!r} at byte {item['offset']}" if "key" in item else ""
        say(f"damaged: {item['shard']}{where}: {item['reason']}")
    if damaged:
        names = sorted({item["shard"] for item in damaged})
        total = sum(split["shards"] for split in report["splits"].values())
        raise ShardError(f"{len(names)} of {total} shards of {folder} are damaged (listed above; first: {names[0]})",
                         "their images can not be trusted", "restore these files, or prepare the dataset again")
    say("every byte is as it was prepared" if verify else "every shard is there and has its size; nothing was read")
    return report


def _measure(folder: Path, shard: Shard) -> Iterator[Damage]:
    """Damage that shows without reading."""
    try:
        size = os.stat(folder / shard.name).st_size
    except OSError as error:
        yield {"shard": shard.name, "reason": f"it can not be opened: {error.strerror}"}
        return
    if size < shard.bytes:
        yield {"shard": shard.name, "reason": f"it is cut off: {shard.bytes - size} of {shard.bytes} bytes are missing"}
    elif size > shard.bytes:
        yield {"shard": shard.name, "reason": f"it has {size - shard.bytes} bytes too many"}


def _verify(folder: Path, shard: Shard) -> Iterator[Damage]:
    wrong_size = list(_measure(folder, shard))
    yield from wrong_size
    index = shard.index
    digest, position, header = hashlib.sha256(), 0, b""
    try:
        with (folder / shard.name).open("rb") as file:
            for i in sorted(range(shard.num_samples), key=lambda i: index.offset[i]):
                sample = {"shard": shard.name, "key": index.key[i], "offset": index.offset[i]}
                if index.offset[i] < position:
                    yield sample | {"reason": "the index says that it overlaps the one before"}
                    continue
                for piece in _pieces(file, index.offset[i] - position):
                    digest.update(piece)
                    header = (header + piece)[-_BLOCK:]
                content = file.read(index.length[i])
                digest.update(content)
                position = index.offset[i] + index.length[i]
                if len(content) < index.length[i]:
                    yield sample | {"reason": "it is cut off"}
                elif not _fits(header, index.length[i]):
                    yield sample | {"reason": "no tar header of its size stands before it"}
                elif zlib.crc32(content) != index.crc32[i]:
                    yield sample | {"reason": "it does not match its checksum"}
            while piece := file.read(_PIECE):
                digest.update(piece)
    except OSError as error:
        if not wrong_size:
            yield {"shard": shard.name, "reason": f"it can not be read: {error.strerror}"}
        return
    if digest.hexdigest() != shard.sha256 and not wrong_size:
        yield {"shard": shard.name, "reason": f"its SHA-256 is {digest.hexdigest()}, not {shard.sha256}"}


def _pieces(file: Any, length: int) -> Iterator[bytes]:
    while length and (piece := file.read(min(length, _PIECE))):
        length -= len(piece)
        yield piece


def _fits(header: bytes, length: int) -> bool:
    """Whether a tar header announces a member of this many bytes."""
    try:
        info = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return info.isreg() and info.size == length
