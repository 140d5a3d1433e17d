"""The images that a dataset has already, and which of the new ones are there, or nearly."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from distrib.data.duplicates import Fingerprint, fingerprint, nearest
from distrib.data.ingest import decode_canonical
from distrib.data.manifest import SPLITS, Manifest, Split
from distrib.data.reading import ReadImage
from distrib.data.report import Progress
from distrib.data.samples import readable
from distrib.data.shards import ShardReader
from distrib.errors import DistribError, ShardError


@dataclass(frozen=True)
class Known:
    """One image that the dataset has."""

    key: str
    split: Split
    label: int
    print: Fingerprint


def read_known(dataset: Path, old: Manifest, workers: int) -> list[Known]:
    """Every image of the dataset, read and decoded. Raises ShardError."""
    found: list[Known] = []
    with Progress("reading the dataset", sum(shard.num_samples for shard in old.shards)) as progress, \
            ThreadPoolExecutor(workers) as pool:
        for split in SPLITS:
            if all(shard.split != split for shard in old.shards):
                continue
            samples = old.samples(split)
            with ShardReader(dataset, samples) as reader:
                for i, one in enumerate(pool.map(partial(_seen, reader), range(len(samples)))):
                    found.append(Known(samples.keys[i], split, int(samples.labels[i]), one))
                    progress.advance(1)
    return found


def _seen(reader: ShardReader, sample: int) -> Fingerprint:
    try:
        return fingerprint(decode_canonical(reader.read(sample), "it")[1])
    except ShardError:
        raise
    except DistribError as error:
        raise reader.error(sample, error.fact.removeprefix("it ")) from error


def without_known(reads: Sequence[ReadImage], known: Sequence[Known],
                   classes: Sequence[str]) -> tuple[list[ReadImage], list[tuple[str, str]]]:
    """(images that the dataset does not have; (path, reason) of the others)."""
    by_digest = {one.print.digest: one for one in known}
    fresh, repeated = [], []
    for read in reads:
        one = by_digest.get(read.print.digest)
        if one is None:
            fresh.append(read)
            continue
        reason = f"the same image as {one.key} in {one.split}"
        if classes[one.label] != read.sample.label:
            reason += f", which is labelled {classes[one.label]!r} and not {read.sample.label!r}"
        repeated.append((readable(read.sample.path), reason))
    return fresh, repeated


def near_known(reads: Sequence[ReadImage], splits: Sequence[Split], known: Sequence[Known]) -> dict[int, Known]:
    """By position, for every new image that is nearly an old one of another split, the one it most resembles."""
    prints = [*(one.print for one in known), *(read.print for read in reads)]
    found: dict[int, Known] = {}
    for split in SPLITS:
        others = [i for i, one in enumerate(known) if one.split != split]
        mine = [len(known) + i for i, place in enumerate(splits) if place == split]
        found |= {second - len(known): known[first] for second, first in nearest(prints, others, mine).items()}
    return found
