"""New images into a new version of a dataset: old shards as they are, new ones beside them, the splits kept apart.

A version is a whole dataset in a folder of its own. Old shards are hard links where the file system has them, else
copies; the manifest names the version before it (``parent``), and with each shard the version that it came with.

- A group that the dataset has already stays in its split. New groups are dealt out by the rule and the seed of
  `prepare`, to whatever split lags behind its share. With ``test = keep`` none goes to the test split, and new images
  of a group that is in it are left out: neither may the test change, nor may what it holds be trained on.
- A new image that is there already, byte for byte or pixel for pixel, and one that is nearly an old one of another
  split, are refused or skipped.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from distrib.data.duplicates import fingerprint
from distrib.data.grouping import merge_copies, without_conflicts
from distrib.data.ingest import decode_canonical
from distrib.data.known import near_known, read_known, without_known
from distrib.data.manifest import (
    SPLITS,
    Excluded,
    Manifest,
    Shard,
    Split,
    class_counts,
    load_manifest,
)
from distrib.data.prepare import (
    DEFAULT_SPLIT,
    PrepareOptions,
    check_options,
    duplicates_across,
    list_samples,
    publish_dataset,
    recorded_columns,
    write_shards,
)
from distrib.data.reading import ReadImage, read_images, remove_spools, spooled
from distrib.data.report import dataset_report, say, say_all, show_report
from distrib.data.samples import Listing, readable, sample_keys, sorted_classes
from distrib.data.split import missing_classes, parse_fractions, split_groups
from distrib.data.workers import allowed_cores
from distrib.documents import validate
from distrib.durable import copy_durable, fsync_dir, sha256_file
from distrib.errors import ConfigError, DataError, ShardError, counted

_NOTHING_WRITTEN = "nothing was written"
_NO_LINK = (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EACCES, errno.ENOSYS)
_REPLACE = "replace them, or leave them out with --on-bad skip"


class UpdateOptions(PrepareOptions):
    """What `distrib update` is told, checked."""

    test: Literal["keep", "grow"] = "keep"
    new_classes: bool = False


def run_update(
    dataset: Path, source: Path, out: Path, *, labels: Path | None = None, image_column: str | None = None,
    label_column: str | None = None, group_column: str | None = None, split_column: str | None = None,
    split: str | None = None, test: str = "keep", new_classes: bool = False, on_bad: str = "refuse",
    shard_samples: int = 1000, shard_mb: float = 64.0, workers: int | None = None,
) -> dict[str, Any]:
    """Write the next version of DATASET, with the images of SOURCE, into OUT and return its report.

    Images are taken in as those of the dataset were, and with ``labels`` the same further columns are kept. ``split``
    gives the parts for new groups; by default those that the dataset was prepared with. OUT appears by one rename; no
    byte of DATASET changes. Raises DistribError.
    """
    old = load_manifest(dataset)
    options = validate(UpdateOptions, {
        "labels": labels, "image_column": image_column, "label_column": label_column, "group_column": group_column,
        "split_column": split_column, "split": split, "seed": old.preparation.get("seed", 0), "on_bad": on_bad,
        "shard_samples": shard_samples, "shard_mb": shard_mb, "workers": workers, "test": test,
        "new_classes": new_classes,
        "kept_columns": (old.preparation.get("labels") or {}).get("kept_columns", ()) if labels is not None else (),
        "ingest": old.ingest,
    }, "the options of update")
    check_options(options)
    _check_grouping(old, options)
    listing = list_samples(source, options, least_classes=1)
    if listing.given_splits and options.split:
        raise ConfigError("--split is given, but the folders of the source are splits already", _NOTHING_WRITTEN,
                          "leave --split out to keep them, or name one of them as the source")
    classes = _classes(old, listing, options)
    for note in listing.notes:
        say(f"note: {note}")
    manifest = publish_dataset(
        out, lambda staging: _build(dataset, old, source, staging, listing, classes, options))
    report = dataset_report(manifest)
    show_report(f"version {manifest.version} of {dataset} in {out}", report)
    new = {split: sum(shard.num_samples for shard in manifest.shards
                      if shard.split == split and shard.version == manifest.version) for split in SPLITS}
    say("new: " + ", ".join(f"{count} {split}" for split, count in new.items() if count))
    return {"dataset": str(out), **report, "new_samples": new}


def _check_grouping(old: Manifest, options: UpdateOptions) -> None:
    """Raises ConfigError where the groups of the new images would not be told."""
    before = (old.preparation.get("labels") or {}).get("group_column") or old.preparation.get("group_field")
    if before and options.group_column is None:
        raise ConfigError(f"the dataset is grouped by {before!r}, and no --group-column is given",
                          "a group could come into two splits, so nothing was written",
                          "name the column that holds the same groups; an empty cell is a group of its own")


def _classes(old: Manifest, listing: Listing, options: UpdateOptions) -> tuple[str, ...]:
    """The dataset's classes, and behind them those that are new: old labels keep their numbers."""
    new = sorted_classes(set(listing.classes) - set(old.classes))
    if new and not options.new_classes:
        raise DataError(f"{counted(len(new), 'class is', 'classes are')} not in the dataset: {', '.join(new[:5])} "
                        f"(it has {', '.join(old.classes[:8])})", _NOTHING_WRITTEN,
                        "correct the labels, or append the classes with --new-classes")
    return (*old.classes, *new)


def _build(dataset: Path, old: Manifest, source: Path, staging: Path, listing: Listing, classes: tuple[str, ...],
           options: UpdateOptions) -> Manifest:
    """Fill the staging folder and return the new version's manifest."""
    workers = options.workers or allowed_cores()
    reads, bad = read_images(source, staging, listing.samples, options.ingest, workers)
    bad = sorted(bad + listing.missing)
    _refuse(bad, "images that can not be used", options)
    with spooled(staging) as content, ThreadPoolExecutor(workers) as pool:  # as the old ones are seen: decoded again
        prints = list(pool.map(lambda read: fingerprint(decode_canonical(content(read), "it")[1]), reads))
    reads = [replace(read, print=one) for read, one in zip(reads, prints, strict=True)]
    reads, conflicting = without_conflicts(reads, options.on_bad == "refuse")
    known = read_known(dataset, old, workers)
    reads, repeated = without_known(reads, known, old.classes)
    _refuse(repeated, "images that the dataset has already", options)

    numbers = {name: number for number, name in enumerate(classes)}
    keys = _new_keys([read.sample.path for read in reads], old)
    groups = [read.sample.group or key for read, key in zip(reads, keys, strict=True)]
    places: dict[str, Split] = {group: shard.split for shard in old.shards for group in shard.index.group}
    if not listing.given_splits:
        groups, _ = merge_copies(reads, groups, places)
    _check_given(reads, groups, places, options)
    kept_out = [(readable(read.sample.path), f"its group {group} is in the test split, which stays as it is")
                for read, group in zip(reads, groups, strict=True)
                if options.test == "keep" and places.get(group) == "test"]
    if kept_out:
        say(f"note: {counted(len(kept_out), 'image was', 'images were')} left out, as the test split has their groups, "
            f"such as {kept_out[0][0]}; "
            "--test grow adds them to it")
    used = [i for i, group in enumerate(groups) if not (options.test == "keep" and places.get(group) == "test")]
    reads, keys, groups = [reads[i] for i in used], [keys[i] for i in used], [groups[i] for i in used]
    labels = [numbers[read.sample.label] for read in reads]
    by_group = _place(old, classes, reads, groups, labels, places, options)
    splits = [by_group[group] for group in groups]

    near_old = near_known(reads, splits, known)
    alike = [(readable(reads[i].sample.path),
              f"it would be in {splits[i]}, and is nearly the same as {seen.key} in {seen.split}")
             for i, seen in sorted(near_old.items())]
    _refuse(alike, "images that are nearly the same as one in another split", options)
    left = [i for i in range(len(reads)) if i not in near_old]
    if not left:
        raise DataError(f"no image of {source} is new and can be used", "there would be nothing in the new version",
                        "see what is said above")
    reads, splits, keys = [reads[i] for i in left], [splits[i] for i in left], [keys[i] for i in left]
    labels, groups = [labels[i] for i in left], [groups[i] for i in left]
    duplicates = duplicates_across(reads, keys, splits)
    version = old.version + 1
    _link_shards(dataset, staging, old.shards)
    new_shards = write_shards(staging, splits, reads, keys, labels, groups, options, version)
    remove_spools(staging)
    _warn_of_missing(classes, (*old.shards, *new_shards))
    excluded = (Excluded(path=path, reason=reason)
                for path, reason in sorted([*bad, *conflicting, *repeated, *kept_out, *alike]))
    return Manifest(
        classes=classes, shards=(*old.shards, *new_shards), duplicates=(*old.duplicates, *duplicates),
        excluded=(*old.excluded, *excluded), version=version, parent=old.sha256,
        ancestors=(*old.ancestors, old.sha256), preparation=_preparation(old, source, version, options),
    )


def _refuse(images: list[tuple[str, str]], what: str, options: UpdateOptions) -> None:
    """Lists the images; raises DataError where they are not to be skipped."""
    if not images:
        return
    say_all(what, images)
    if options.on_bad == "refuse":
        raise DataError(f"{len(images)} {what} (listed above; the first: {images[0][0]}: {images[0][1]})",
                        _NOTHING_WRITTEN, _REPLACE)


def _new_keys(paths: Sequence[str], old: Manifest) -> list[str]:
    """Keys that begin with the version, as no key or group of the dataset does."""
    prefix = f"v{old.version + 1}/"
    while any(name.startswith(prefix) for shard in old.shards for name in (*shard.index.key, *shard.index.group)):
        prefix = f"v{prefix}"
    return [prefix + key for key in sample_keys(paths)]


def _check_given(reads: Sequence[ReadImage], groups: Sequence[str], places: Mapping[str, Split],
                 options: UpdateOptions) -> None:
    """Of splits that the source gives. Raises DataError where a group would be torn, or the test split changed."""
    given: dict[str, Split] = {}
    for read, group in zip(reads, groups, strict=True):
        wish = read.sample.split
        if wish is None:
            continue
        have = places.get(group) or given.setdefault(group, wish)
        if have != wish:
            raise DataError(f"group {group} is in the {have} split, and {readable(read.sample.path)} is given to "
                            f"{wish}", "a group in two splits makes scores too good, so nothing was written",
                            "correct the split column, or let the group's place decide by leaving it out")
        if wish == "test" and options.test == "keep":
            raise DataError(f"{readable(read.sample.path)} is given to the test split, which stays as it is",
                            _NOTHING_WRITTEN, "let it grow with --test grow")


def _place(old: Manifest, classes: Sequence[str], reads: Sequence[ReadImage], groups: Sequence[str],
           labels: Sequence[int], places: Mapping[str, Split], options: UpdateOptions) -> dict[str, Split]:
    """The split of every group of new images."""
    result = {group: places[group] for group in groups if group in places}
    result |= {group: read.sample.split for read, group in zip(reads, groups, strict=True)
               if read.sample.split is not None and group not in places}
    fresh = [i for i, group in enumerate(groups) if group not in result]
    if not fresh:
        return result
    fractions = fractions_of(old, options.split)
    if options.test == "keep":
        left = {split: part for split, part in fractions.items() if split != "test"}
        fractions = {split: part / sum(left.values()) for split, part in left.items()}
    before = {split: class_counts([label for shard in old.shards if shard.split == split
                                   for label in shard.index.label], len(classes)) for split in fractions}
    return result | split_groups([groups[i] for i in fresh], [labels[i] for i in fresh], classes, fractions,
                                 options.seed, before)


def fractions_of(old: Manifest, wish: str | None) -> dict[Split, float]:
    """Parts for new groups: the wish, or what the dataset was prepared with, or the default of its splits."""
    if wish is not None:
        return parse_fractions(wish)
    recorded = old.preparation.get("split", {}).get("fractions")
    if recorded:
        return {split: float(recorded[split]) for split in SPLITS if split in recorded}
    have = {shard.split for shard in old.shards}
    parts = {split: part for split, part in parse_fractions(DEFAULT_SPLIT).items() if split in have}
    return {split: part / sum(parts.values()) for split, part in parts.items()}


def _link_shards(dataset: Path, staging: Path, shards: Sequence[Shard]) -> None:
    """Every old shard under its name: a hard link, or a copy that is checked. Raises OSError, ShardError."""
    for shard in shards:
        source, target = (dataset / shard.name).resolve(), staging / shard.name
        if source.stat().st_size != shard.bytes:
            raise ShardError(f"shard {dataset / shard.name} has {source.stat().st_size} bytes, not {shard.bytes}",
                             _NOTHING_WRITTEN, f"see what else is wrong with `distrib inspect {dataset}`")
        try:
            os.link(source, target)
            continue
        except OSError as error:
            if error.errno not in _NO_LINK:
                raise
        copy_durable(source, target)
        if sha256_file(target) != shard.sha256:
            raise ShardError(f"shard {dataset / shard.name} does not match its digest", _NOTHING_WRITTEN,
                             f"see what else is wrong with `distrib inspect {dataset}`")
    fsync_dir(staging)


def _warn_of_missing(classes: Sequence[str], shards: Sequence[Shard]) -> None:
    by_split = {split: [label for shard in shards if shard.split == split for label in shard.index.label]
                for split in SPLITS if any(shard.split == split for shard in shards)}
    for sentence in missing_classes(by_split, classes):
        say(f"warning: {sentence}; it can not measure them")


def _preparation(old: Manifest, source: Path, version: int, options: UpdateOptions) -> dict[str, Any]:
    """The first version's, and one entry an update."""
    columns = recorded_columns(options)
    return {**old.preparation, "updates": [*old.preparation.get("updates", ()), {
        "version": version, "source": readable(source.resolve().name), "test": options.test, "split": options.split,
        "labels": {"file": options.labels.name, **columns} if options.labels else None,
    }]}
