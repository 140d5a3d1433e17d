"""Reading all images of a source once, over all cores, into files that wait to become shards."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from distrib.data.duplicates import Fingerprint, fingerprint
from distrib.data.image_files import read_image_file
from distrib.data.ingest import IngestOptions, ingest
from distrib.data.report import Progress
from distrib.data.samples import Sample, readable
from distrib.data.workers import spread
from distrib.errors import DataError, ImageError

_AT_ONCE = 16


@dataclass(frozen=True)
class ReadImage:
    """A sample whose image was read, and where its canonical form waits to be written into a shard."""

    sample: Sample
    kind: Literal["jpg", "png"]
    source_width: int
    source_height: int
    source_sha256: str
    print: Fingerprint
    spool: str
    offset: int
    length: int


@dataclass(frozen=True)
class _Reading:
    source: Path
    spools: Path
    options: IngestOptions


def read_images(source: Path, spools: Path, samples: Sequence[Sample], options: IngestOptions,
                workers: int) -> tuple[list[ReadImage], list[tuple[str, str]]]:
    """(images read, in order of their paths; (path, reason) of all others).

    Canonical images go into files named ``*.spool`` in the folder ``spools``, one a worker, so that memory
    holds only those at work. Raises OSError about that folder, DataError if a worker dies.
    """
    reads: list[ReadImage] = []
    bad: list[tuple[str, str]] = []
    state = _Reading(source, spools, options)
    with Progress("reading images", len(samples)) as progress:
        for some_reads, some_bad in spread(_read_some, state, samples, workers=workers, at_once=_AT_ONCE):
            reads += some_reads
            bad += some_bad
            progress.advance(len(some_reads) + len(some_bad))
    return sorted(reads, key=lambda read: read.sample.path), bad


def _read_some(state: _Reading, samples: Sequence[Sample]) -> tuple[list[ReadImage], list[tuple[str, str]]]:
    """Runs in a worker process."""
    reads, bad = [], []
    spool = f"{os.getpid()}.spool"
    with (state.spools / spool).open("ab") as file:
        for sample in samples:
            try:
                raw = read_image_file(state.source / sample.path)
                image = ingest(raw, "it", state.options)
            except (ImageError, DataError) as error:
                bad.append((readable(sample.path), error.fact.removeprefix("it ")))
                continue
            offset = file.tell()
            file.write(image.content)
            reads.append(ReadImage(sample, image.kind, image.source_width, image.source_height,
                                   hashlib.sha256(raw).hexdigest(), fingerprint(image.pixels), spool, offset,
                                   len(image.content)))
    return reads, bad


@contextmanager
def spooled(spools: Path) -> Iterator[Callable[[ReadImage], bytes]]:
    """A function that gives the canonical bytes of an image that was read. It raises OSError."""
    with ExitStack() as stack:
        fds: dict[str, int] = {}

        def content(read: ReadImage) -> bytes:
            path = spools / read.spool
            if read.spool not in fds:
                fds[read.spool] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                stack.callback(os.close, fds[read.spool])
            result = os.pread(fds[read.spool], read.length, read.offset)
            if len(result) != read.length:
                raise OSError(None, "a temporary file was cut off", str(path))
            return result

        yield content


def remove_spools(spools: Path) -> None:
    """Raises OSError."""
    for path in spools.glob("*.spool"):
        path.unlink()
