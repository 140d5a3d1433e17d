"""From raw image files to a finished dataset: read, check, split, write shards, publish by one rename."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import cv2
import numpy
import PIL
import simplejpeg
from pydantic import Field

from distrib.data.duplicates import pairs_across
from distrib.data.grouping import check_given_splits, merge_copies, without_conflicts
from distrib.data.ingest import IngestOptions
from distrib.data.labels import Columns, read_folders, read_table
from distrib.data.manifest import FILE_NAME, SPLITS, Duplicate, Excluded, Manifest, Shard, Split
from distrib.data.reading import ReadImage, read_images, remove_spools, spooled
from distrib.data.report import Progress, dataset_report, say, say_all, show_report
from distrib.data.samples import Listing, readable, sample_keys
from distrib.data.shard_writer import ShardWriter
from distrib.data.split import keyed_digest, parse_fractions, split_groups
from distrib.data.workers import allowed_cores
from distrib.documents import Section, validate
from distrib.durable import begin_staging, publish_dir, seal_digest, write_durable
from distrib.errors import ConfigError, DataError, counted, storage_errors

OnBad = Literal["refuse", "skip"]
DEFAULT_SPLIT = "0.8/0.1/0.1"
_NOTHING_WRITTEN = "nothing was written"
_UNGROUPED = ("every image is dealt to a split by itself; if several show one patient or lesion, the scores will be "
              "too good: name what they share with --labels and --group-column")


class PrepareOptions(Section):
    """What `distrib prepare` is told, checked."""

    labels: Path | None = None
    image_column: str | None = None
    label_column: str | None = None
    group_column: str | None = None
    split_column: str | None = None
    kept_columns: tuple[str, ...] = ()
    """Whose values go into the samples' JSON, for `distrib report --subgroup`."""
    split: str | None = None
    """train/val/test; 0.8/0.1/0.1 unless the source says itself which image belongs where."""
    ingest: IngestOptions = IngestOptions()
    seed: int = 0
    on_bad: OnBad = "refuse"
    shard_samples: int = 1000
    shard_mb: Annotated[float, Field(le=1e6)] = 64.0
    workers: int | None = None


def run_prepare(
    source: Path, out: Path, *, labels: Path | None = None, image_column: str | None = None,
    label_column: str | None = None, group_column: str | None = None, split_column: str | None = None,
    split: str | None = None, resize: int | None = None, image_format: str = "jpg", quality: int = 95, seed: int = 0,
    on_bad: str = "refuse", shard_samples: int = 1000, shard_mb: float = 64.0, workers: int | None = None,
    kept_columns: Sequence[str] = (),
) -> dict[str, Any]:
    """Prepare SOURCE into the dataset OUT and return its report; tables and progress go to stderr.

    The same input and seed give the same bytes, whatever the number of workers. OUT appears by one rename when
    everything in it is on disk. Raises DistribError.
    """
    options = validate(PrepareOptions, {
        "labels": labels, "image_column": image_column, "label_column": label_column, "group_column": group_column,
        "split_column": split_column, "split": split, "seed": seed, "on_bad": on_bad, "shard_samples": shard_samples,
        "shard_mb": shard_mb, "workers": workers, "kept_columns": tuple(dict.fromkeys(kept_columns)),
        "ingest": {"resize": resize, "format": image_format, "quality": quality},
    }, "the options of prepare")
    check_options(options)
    listing = list_samples(source, options)
    fractions = _fractions(listing, options)
    notes = [*listing.notes, *([_UNGROUPED] if fractions is not None and options.group_column is None else [])]
    for note in notes:
        say(f"note: {note}")
    manifest = publish_dataset(out, lambda staging: _build(source, staging, listing, fractions, options))
    report = dataset_report(manifest)
    show_report(f"prepared {out}", report)
    return {"dataset": str(out), **report}


def check_options(options: PrepareOptions) -> None:
    """Raises ConfigError for what can not be fulfilled."""
    for name in ("shard_samples", "shard_mb", "workers"):
        value = getattr(options, name)
        if value is not None and not value > 0:
            raise ConfigError(f"--{name.replace('_', '-')} {value} is not above 0", _NOTHING_WRITTEN, "give at least 1")
    if options.split and options.split_column:
        raise ConfigError("--split and --split-column are both given", "only one can decide", "leave one out")
    if options.labels is None:
        given = [name for name in ("image_column", "label_column", "group_column", "split_column")
                 if getattr(options, name) is not None]
        given += ["keep_column"] if options.kept_columns else []
        if given:
            raise ConfigError(f"--{given[0].replace('_', '-')} is given without --labels", _NOTHING_WRITTEN,
                              "name the CSV with --labels FILE.csv")
    elif options.image_column is None or options.label_column is None:
        raise ConfigError("--labels needs --image-column and --label-column", _NOTHING_WRITTEN,
                          "say which columns hold the image and its label")


def list_samples(source: Path, options: PrepareOptions, least_classes: int = 2) -> Listing:
    """What the source holds. Raises DataError."""
    if options.labels is None:
        return read_folders(source, least_classes)
    assert options.image_column is not None
    assert options.label_column is not None
    columns = Columns(options.image_column, options.label_column, options.group_column, options.split_column,
                      options.kept_columns)
    return read_table(source, options.labels, columns, least_classes)


def _fractions(listing: Listing, options: PrepareOptions) -> dict[Split, float] | None:
    """What to split by; None where the source says it itself."""
    if not listing.given_splits:
        return parse_fractions(options.split or DEFAULT_SPLIT)
    if options.split:
        raise ConfigError("--split is given, but the folders of the source are splits already", _NOTHING_WRITTEN,
                          "leave --split out to keep them, or name one of them as the source")
    return None


def publish_dataset(out: Path, build: Callable[[Path], Manifest]) -> Manifest:
    """The sealed manifest of a dataset whose files ``build`` puts into a folder. OUT appears by one rename."""
    with storage_errors(f"the dataset {out} can not be written", _NOTHING_WRITTEN):
        staging = _begin_staging(out)
        try:
            manifest = build(staging)
            document = manifest.to_bytes()
            write_durable(staging / FILE_NAME, document)
            publish_dir(staging, out)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    return manifest.model_copy(update={"sha256": seal_digest(document)})


def _begin_staging(out: Path) -> Path:
    """An empty folder beside OUT; those that killed runs on this host left there are removed."""
    try:
        occupied = any(out.iterdir())
    except FileNotFoundError:
        occupied = False
    if occupied or out.is_symlink():
        raise ConfigError(f"--out {out} exists and is not an empty folder", _NOTHING_WRITTEN,
                          "choose another folder, or remove that one")
    return begin_staging(out, say)


def _build(source: Path, staging: Path, listing: Listing, fractions: dict[Split, float] | None,
           options: PrepareOptions) -> Manifest:
    """Write the shards into the staging folder and return their manifest."""
    reads, bad = read_images(source, staging, listing.samples, options.ingest, options.workers or allowed_cores())
    bad += listing.missing
    if bad:
        bad.sort()
        say_all("images that can not be used", bad)
        if options.on_bad == "refuse":
            raise DataError(f"{len(bad)} of {len(listing.samples) + len(listing.missing)} images can not be used "
                            f"(listed above), such as {bad[0][0]}: {bad[0][1]}", _NOTHING_WRITTEN,
                            "replace them, or leave them out with --on-bad skip")
    reads, conflicting = without_conflicts(reads, options.on_bad == "refuse")
    used = {read.sample.label for read in reads}
    classes = tuple(name for name in listing.classes if name in used)
    if gone := [name for name in listing.classes if name not in used]:
        say(f"warning: no usable image is left of class {', '.join(gone)}")
    if len(classes) < 2:
        raise DataError(f"the images that can be used are of {counted(len(classes), 'class', 'classes')}",
                        "there is nothing to tell apart",
                        "replace the images listed above")
    numbers = {name: number for number, name in enumerate(classes)}
    labels = [numbers[read.sample.label] for read in reads]
    keys = sample_keys([read.sample.path for read in reads])
    groups = [read.sample.group or key for read, key in zip(reads, keys, strict=True)]
    num_merged = 0
    if fractions is None:
        splits = [read.sample.split or "train" for read in reads]
        check_given_splits(groups, splits, labels, classes)
    else:
        groups, num_merged = merge_copies(reads, groups)
        by_group = split_groups(groups, labels, classes, fractions, options.seed)
        splits = [by_group[group] for group in groups]
    duplicates = duplicates_across(reads, keys, splits)
    shards = write_shards(staging, splits, reads, keys, labels, groups, options)
    remove_spools(staging)
    excluded = tuple(Excluded(path=path, reason=reason) for path, reason in sorted(bad + conflicting))
    return Manifest(classes=classes, shards=tuple(shards), duplicates=duplicates, excluded=excluded, sha256="",
                    preparation=_preparation(source, fractions, options, num_merged))


def _preparation(source: Path, fractions: dict[Split, float] | None, options: PrepareOptions,
                 num_merged: int) -> dict[str, Any]:
    """How the dataset came to be; nothing of this machine or hour, so that a rerun gives the same document."""
    columns = recorded_columns(options)
    split: dict[str, Any] = {"given_by": "a column" if options.split_column else "folders"}
    if fractions is not None:
        split = {"fractions": fractions, "merged_groups": num_merged}
    return {
        "adopted": False,
        "ingest": options.ingest.model_dump(),
        "split": split,
        "seed": options.seed,
        "source": readable(source.resolve().name),
        "labels": {"file": options.labels.name, **columns} if options.labels else None,
        "made_with": {module.__name__: module.__version__ for module in (PIL, simplejpeg, numpy, cv2)},
    }


def recorded_columns(options: PrepareOptions) -> dict[str, Any]:
    """The columns that were named, for the manifest."""
    columns = options.model_dump(include={"image_column", "label_column", "group_column", "split_column"})
    return columns | ({"kept_columns": list(options.kept_columns)} if options.kept_columns else {})


def duplicates_across(reads: Sequence[ReadImage], keys: Sequence[str],
                      splits: Sequence[Split]) -> tuple[Duplicate, ...]:
    """Images that are the same, or nearly, in two splits: for the manifest."""
    return tuple(
        Duplicate(kind="exact" if pair.exact else "near", first=keys[pair.first], second=keys[pair.second],
                  splits=(splits[pair.first], splits[pair.second]))
        for pair in pairs_across([read.print for read in reads], splits))


def write_shards(staging: Path, splits: Sequence[Split], reads: Sequence[ReadImage], keys: Sequence[str],
                  labels: Sequence[int], groups: Sequence[str], options: PrepareOptions,
                 version: int = 1) -> list[Shard]:
    """Every split in a random order of its own, which the seed decides."""
    shards: list[Shard] = []
    with Progress("writing shards", len(reads)) as progress, spooled(staging) as content:
        for split in SPLITS:
            members = sorted((i for i, place in enumerate(splits) if place == split),
                             key=lambda i: keyed_digest(options.seed, "order", keys[i]))
            with ShardWriter(staging, split, options.shard_samples, int(options.shard_mb * 1e6), version) as writer:
                for i in members:
                    read = reads[i]
                    writer.add(keys[i], read.kind, content(read), labels[i], groups[i], {
                        "path": readable(read.sample.path), "label": read.sample.label, "group": groups[i],
                        "width": read.source_width, "height": read.source_height, "sha256": read.source_sha256,
                        **({"columns": dict(read.sample.kept)} if read.sample.kept else {}),
                    })
                    progress.advance(1)
            shards += writer.shards
    return shards
