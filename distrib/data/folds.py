"""Folds of a dataset for cross-validation: groups whole, classes in proportion, a pure function of manifest and seed.

A run sees a *view* of the manifest: the fold is its validation split, the other folds are its training split, and the
test split is as it was. No byte on the disk changes.
"""

from __future__ import annotations

from itertools import compress

from distrib.config import DataConfig
from distrib.data.keyed import key_of
from distrib.data.manifest import Manifest, Shard, ShardIndex, Split, load_manifest
from distrib.data.split import split_groups
from distrib.errors import DataError

_FOLDS = 13  # the first part of a key says what it is for


def load_view(data: DataConfig) -> Manifest:
    """The dataset's manifest as a run with this configuration sees it. Raises DataError, ManifestError."""
    return fold_view(load_manifest(data.dataset), data)


def fold_view(manifest: Manifest, data: DataConfig) -> Manifest:
    """The manifest with ``data.fold`` as its validation split; itself where none is named.

    A shard that holds samples of both is listed twice, once in each split, so a view is for reading only. It keeps the
    manifest's seal. Raises DataError where a fold would lack a class.
    """
    if data.folds is None or data.fold is None:
        return manifest
    fold_of = folds_by_group(manifest, data)
    shards: list[Shard] = []
    for shard in manifest.shards:
        if shard.split == "test":
            shards.append(shard)
        elif shard.split in data.fold_over.split("+"):
            held_out = [fold_of[group] == data.fold for group in shard.index.group]
            shards += _part(shard, "train", [not one for one in held_out])
            shards += _part(shard, "val", held_out)
    return manifest.model_copy(update={"shards": tuple(shards)})


def folds_by_group(manifest: Manifest, data: DataConfig) -> dict[str, int]:
    """The fold of every group of what is cut into folds. Raises DataError where a fold would lack a class."""
    assert data.folds is not None
    shards = [shard for shard in manifest.shards if shard.split in data.fold_over.split("+")]
    numbers = {f"fold {number}": number for number in range(data.folds)}
    try:
        names = split_groups(
            [group for shard in shards for group in shard.index.group],
            [label for shard in shards for label in shard.index.label], manifest.classes,
            dict.fromkeys(numbers, 1 / data.folds), key_of(_FOLDS, data.fold_seed))
    except DataError as error:
        raise DataError(error.fact.replace("splits", "folds"), "a fold that lacks a class can not measure it",
                        "take fewer data.folds, or add images of the class") from error
    return {group: numbers[name] for group, name in names.items()}


def _part(shard: Shard, split: Split, chosen: list[bool]) -> list[Shard]:
    """The chosen samples of a shard as a shard of a split; none where it has none."""
    if not any(chosen):
        return []
    index = ShardIndex.model_validate({name: tuple(compress(column, chosen)) for name, column in shard.index})
    return [shard.model_copy(update={"split": split, "num_samples": sum(chosen), "index": index})]
