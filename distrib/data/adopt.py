"""Making WebDataset shards of others a dataset: a manifest beside them, the tars untouched."""

from __future__ import annotations

import fnmatch
import os
import re
import zlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from distrib.data.duplicates import Fingerprint, fingerprint, pairs_across
from distrib.data.foreign import ForeignSample, LabelRule, read_label, scan_shard
from distrib.data.grouping import check_given_splits
from distrib.data.ingest import IngestOptions, decode_canonical
from distrib.data.manifest import FILE_NAME, SPLITS, Duplicate, Excluded, Manifest, Shard, ShardIndex, Split
from distrib.data.report import Progress, dataset_report, say, say_all, show_report
from distrib.data.samples import sorted_classes
from distrib.data.split import split_named
from distrib.data.workers import allowed_cores, spread
from distrib.durable import replace_file, seal_digest, sha256_file
from distrib.errors import ConfigError, DataError, ImageError, ShardError, counted, storage_errors

_NOTHING_WRITTEN = "nothing was written"
_AT_ONCE = 16


@dataclass(frozen=True)
class _Checked:
    """A sample whose label was read and whose image was decoded."""

    shard: str
    key: str
    kind: Literal["jpg", "png"]
    offset: int
    length: int
    crc32: int
    label: str
    group: str | None
    print: Fingerprint


def run_adopt(
    folder: Path, *, splits: Sequence[str] = (), label_field: str | None = None, group_field: str | None = None,
    class_names: Path | None = None, on_bad: str = "refuse", workers: int | None = None,
) -> dict[str, Any]:
    """Index every FOLDER/*.tar into FOLDER/dataset.json and return the dataset's report.

    ``splits`` are texts such as ``train=shard-00*.tar``; without any, the words train, val (valid, validation)
    and test in the file names decide. Labels are the .cls members, or ``label_field`` of the .json members; with
    ``class_names``, a text file of one name a line, they are numbers counted from 0, or those names. Every image
    is decoded once. Raises DistribError.
    """
    if on_bad not in ("refuse", "skip"):
        raise ConfigError(f"--on-bad {on_bad!r} is unknown", _NOTHING_WRITTEN, "say refuse or skip")
    by_shard = _assign_splits(folder, _find_shards(folder), splits)
    names = _read_class_names(class_names) if class_names else None
    samples = [sample for shard in by_shard for sample in scan_shard(folder / shard)]
    if not samples:
        hold = counted(len(by_shard), f"shard of {folder} holds", f"shards of {folder} hold")
        raise DataError(f"the {hold} no samples", "there is nothing to adopt",
                        "check that they are WebDataset shards")
    checked, bad = _check_all(folder, samples, LabelRule(label_field, group_field), workers or allowed_cores())
    checked, classes, unknown = _name_classes(checked, names)
    bad += unknown
    if bad:
        say_all("samples that can not be used", sorted(bad))
        if on_bad == "refuse":
            raise DataError(f"{len(bad)} of {len(samples)} samples can not be used (listed above), such as "
                            f"{min(bad)[0]}: {min(bad)[1]}", _NOTHING_WRITTEN,
                            "replace them, have `distrib prepare` read the original images, or give --on-bad skip")
    if len(classes) < 2:
        raise DataError(f"the samples are of {counted(len(classes), 'class', 'classes')}",
                        "there is nothing to tell apart",
                        "check the labels, or --label-field")
    # png, so that an image which is no JPEG loses nothing in `predict` either, as it lost nothing here.
    preparation = {"adopted": True, "ingest": IngestOptions(format="png").model_dump(), "label_field": label_field,
                   "group_field": group_field, "splits": list(splits)}
    manifest = _manifest(folder, checked, classes, by_shard, bad, preparation)
    document = manifest.to_bytes()
    with storage_errors(f"{folder / FILE_NAME} can not be written", "the shards are not adopted"):
        replace_file(folder / FILE_NAME, document)
    report = dataset_report(manifest.model_copy(update={"sha256": seal_digest(document)}))
    show_report(f"adopted {folder}", report)
    return {"dataset": str(folder), **report}


def _find_shards(folder: Path) -> list[str]:
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise DataError(f"{folder} can not be read: {error.strerror}", "there is nothing to adopt",
                        "name the folder of the shards") from error
    if FILE_NAME in names:
        raise ConfigError(f"{folder / FILE_NAME} exists: these shards are a dataset already", _NOTHING_WRITTEN,
                          f"look at it with `distrib inspect {folder}`, or remove that file")
    compressed = [name for name in names if re.search(r"\.(tgz|tar\.\w+)$", name)]
    if compressed:
        are = counted(len(compressed), f"shard of {folder} is", f"shards of {folder} are")
        raise ShardError(f"{are} compressed, such as {compressed[0]}",
                         "single images can not be read out of them",
                         f"unpack them, for example with `gunzip {compressed[0]}`")
    shards = [name for name in names if name.endswith(".tar")]
    if odd := [name for name in shards if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}", name)]:
        raise ShardError(f"the name of shard {odd[0]!r} has other characters than letters, digits, '.', '_' and '-'",
                         _NOTHING_WRITTEN, "rename it")
    if not shards:
        raise DataError(f"{folder} holds no .tar files", "there is nothing to adopt", "name the folder of the shards")
    return shards


def _assign_splits(folder: Path, shards: Sequence[str], rules: Sequence[str]) -> dict[str, Split]:
    """The split of every shard that has one."""
    patterns: list[tuple[Split, str]] = []
    for rule in rules:
        name, equals, pattern = rule.partition("=")
        split = split_named(name)
        if not equals or not pattern or split is None:
            raise ConfigError(f"--split {rule!r} is not of the form train=PATTERN, val=PATTERN or test=PATTERN",
                              _NOTHING_WRITTEN, "write for example --split 'train=shard-00*.tar'")
        patterns.append((split, pattern))
    result: dict[str, Split] = {}
    unclear = []
    for shard in shards:
        if patterns:
            found = {split for split, pattern in patterns if fnmatch.fnmatchcase(shard, pattern)}
        else:
            found = {split for word in re.split(r"[^A-Za-z]+", shard) if (split := split_named(word))}
        if len(found) == 1:
            result[shard] = found.pop()
        elif found or not patterns:
            unclear.append(shard)
        else:
            say(f"note: {shard} matches no --split and is left out")
    if unclear:
        raise ConfigError(f"which split {unclear[0]} belongs to is unclear ({counted(len(unclear), 'shard')})",
                          _NOTHING_WRITTEN,
                          "say it with --split train=PATTERN --split val=PATTERN --split test=PATTERN")
    if "train" not in result.values():
        raise ConfigError(f"no shard of {folder} is in the train split", "there is nothing to train on",
                          "say which with --split train=PATTERN")
    return result


def _read_class_names(path: Path) -> tuple[str, ...]:
    try:
        names = tuple(line.strip() for line in path.read_text("utf-8-sig").splitlines())
    except OSError as error:
        raise ConfigError(f"the class names {path} can not be read: {error.strerror}", _NOTHING_WRITTEN,
                          "check the path") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"the class names {path} are not UTF-8 text", _NOTHING_WRITTEN,
                          "save them as UTF-8") from error
    while names and not names[-1]:
        names = names[:-1]
    if not all(names) or len(set(names)) != len(names):
        raise ConfigError(f"the class names {path} have an empty or a repeated line", "the numbers would be wrong",
                          "write one name a line")
    return names


def _check_all(folder: Path, samples: Sequence[ForeignSample], rule: LabelRule,
               workers: int) -> tuple[list[_Checked], list[tuple[str, str]]]:
    checked: list[_Checked] = []
    bad: list[tuple[str, str]] = []
    with Progress("decoding images", len(samples)) as progress:
        for some, some_bad in spread(_check_some, (folder, rule), samples, workers=workers, at_once=_AT_ONCE):
            checked += some
            bad += some_bad
            progress.advance(len(some) + len(some_bad))
    return sorted(checked, key=lambda item: (item.shard, item.offset)), bad


def _check_some(state: tuple[Path, LabelRule],
                samples: Sequence[ForeignSample]) -> tuple[list[_Checked], list[tuple[str, str]]]:
    """Runs in a worker process. Raises ShardError."""
    folder, rule = state
    checked, bad = [], []
    for sample in samples:
        path = folder / sample.shard
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                label, group = read_label(fd, sample, rule)
                offset, length = sample.image
                content = os.pread(fd, length, offset)
            finally:
                os.close(fd)
            kind, pixels = decode_canonical(content, "it")
        except OSError as error:
            raise ShardError(f"shard {path} can not be read: {error.strerror}", "its samples are missing",
                             "check the file system") from error
        except ValueError as error:
            bad.append((f"{sample.shard}:{sample.key}", str(error)))
        except ImageError as error:
            bad.append((f"{sample.shard}:{sample.key}", error.fact.removeprefix("it ")))
        else:
            checked.append(_Checked(sample.shard, sample.key, kind, offset, length, zlib.crc32(content), label, group,
                                    fingerprint(pixels)))
    return checked, bad


def _name_classes(checked: list[_Checked], names: tuple[str, ...] | None,
                  ) -> tuple[list[_Checked], tuple[str, ...], list[tuple[str, str]]]:
    """(samples, classes, samples whose label is none): labels as names, numbers replaced by ``names``."""
    if names is None:
        return checked, sorted_classes(item.label for item in checked), []
    known, unknown = [], []
    for item in checked:
        if item.label in names:
            known.append(item)
        elif re.fullmatch(r"[0-9]{1,9}", item.label) and int(item.label) < len(names):
            known.append(_Checked(**{**vars(item), "label": names[int(item.label)]}))
        else:
            reason = f"has the label {item.label!r}, which is neither a class name nor a number of one"
            unknown.append((f"{item.shard}:{item.key}", reason))
    return known, names, unknown


def _manifest(folder: Path, checked: Sequence[_Checked], classes: tuple[str, ...], by_shard: dict[str, Split],
              bad: list[tuple[str, str]], preparation: dict[str, Any]) -> Manifest:
    times = Counter(item.key for item in checked)
    keys = [item.key if times[item.key] == 1 else f"{item.shard.removesuffix('.tar')}/{item.key}" for item in checked]
    groups = [item.group or key for item, key in zip(checked, keys, strict=True)]
    numbers = {name: number for number, name in enumerate(classes)}
    labels = [numbers[item.label] for item in checked]
    splits = [by_shard[item.shard] for item in checked]
    check_given_splits(groups, splits, labels, classes)
    shards = []
    places: dict[str, list[int]] = defaultdict(list)
    for i, item in enumerate(checked):
        places[item.shard].append(i)
    used = sorted(places, key=lambda name: (SPLITS.index(by_shard[name]), name))
    with ThreadPoolExecutor(allowed_cores()) as pool:
        digests = dict(zip(used, pool.map(lambda name: sha256_file(folder / name), used), strict=True))
    for name in used:
        members = places[name]
        index = ShardIndex(
            key=tuple(keys[i] for i in members), kind=tuple(checked[i].kind for i in members),
            offset=tuple(checked[i].offset for i in members), length=tuple(checked[i].length for i in members),
            crc32=tuple(checked[i].crc32 for i in members), label=tuple(labels[i] for i in members),
            group=tuple(groups[i] for i in members),
        )
        shards.append(Shard(name=name, split=by_shard[name], num_samples=len(members),
                            bytes=os.stat(folder / name).st_size, sha256=digests[name], index=index))
    duplicates = tuple(
        Duplicate(kind="exact" if pair.exact else "near", first=keys[pair.first], second=keys[pair.second],
                  splits=(splits[pair.first], splits[pair.second]))
        for pair in pairs_across([item.print for item in checked], splits)
    )
    return Manifest(classes=classes, shards=tuple(shards), duplicates=duplicates, preparation=preparation, sha256="",
                    excluded=tuple(Excluded(path=path, reason=reason) for path, reason in sorted(bad)))
