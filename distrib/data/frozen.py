"""The frozen test split: its identity, and that nothing of it was trained on. Pure functions of manifests."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

from distrib.data.manifest import Manifest, Split, SplitSamples


def split_digest(samples: SplitSamples) -> str:
    """SHA-256 over every sample's key, class, group and encoded image (length and CRC-32), in order of the keys.

    It does not depend on shards, nor on classes that were appended.
    """
    rows = sorted(
        (key, samples.classes[label], group, length, crc32)
        for shard in samples.shards
        for key, label, group, length, crc32 in zip(shard.index.key, shard.index.label, shard.index.group,
                                                    shard.index.length, shard.index.crc32, strict=True))
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


@dataclass(frozen=True)
class Seen:
    """What a model was trained and chosen on: its training and validation splits."""

    groups: frozenset[str]
    images: frozenset[tuple[int, int]]
    """(length, CRC-32) of the encoded images."""


def seen_by(manifest: Manifest, judged: Split, version: int, *, in_folds: bool = False) -> Seen:
    """What a model judged on the split ``judged`` has learnt or was chosen from, up to a version of the dataset.

    ``in_folds``: its validation split was cut into folds with the training split, so that it has learnt from both.
    """
    learnt = ("train",) if judged == "val" and not in_folds else ("train", "val")
    shards = [shard for shard in manifest.shards
              if shard.split in learnt and shard.version <= version]
    return Seen(frozenset(group for shard in shards for group in shard.index.group),
                frozenset(image for shard in shards
                          for image in zip(shard.index.length, shard.index.crc32, strict=True)))


def leaks(samples: SplitSamples, seen: Seen) -> list[str]:
    """Keys of the samples whose group, or whose very image, the model has seen."""
    return [key for shard in samples.shards
            for key, group, length, crc32 in zip(shard.index.key, shard.index.group, shard.index.length,
                                                 shard.index.crc32, strict=True)
            if group in seen.groups or (length, crc32) in seen.images]


def version_of(manifest: Manifest, dataset_sha256: str) -> int | None:
    """Which version of a dataset has this seal, by its own account; None if none."""
    versions = [*manifest.ancestors, manifest.sha256]
    return versions.index(dataset_sha256) + 1 if dataset_sha256 in versions else None
