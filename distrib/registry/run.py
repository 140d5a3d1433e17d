"""`distrib promote`: judge, decide, write the entry, switch; and the ways back."""

from __future__ import annotations

import contextlib
import getpass
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from distrib.bundle import Bundle, LoadedBundle, load_bundle
from distrib.config import Experiment
from distrib.data.frozen import leaks, seen_by, split_digest, version_of
from distrib.data.manifest import SPLITS, Manifest, SplitSamples, load_manifest
from distrib.data.shards import ShardReader
from distrib.data.transform import EvalTransform
from distrib.documents import validate
from distrib.errors import ConfigError, DataError, ManifestError
from distrib.evaluate import check_classes
from distrib.registry.entry import Entry, Judgement
from distrib.registry.store import Registry, append, open_registry
from distrib.runtimes.table import Runtime
from distrib.scoring import Logits, score_split

Tell = Callable[[str], None]
RESAMPLES = 2000
_NOT_PROMOTED = "it was not promoted"


@dataclass(frozen=True)
class Terms:
    """What a candidate is judged by, checked."""

    split: str = "test"
    metric: str | None = None
    """By default the candidate's own evaluate.metric."""
    margin: float = 0.0
    strict: bool = False
    resamples: int = RESAMPLES
    force: bool = False
    reason: str = ""
    new_test: bool = False
    trained_on: Sequence[Path] = ()
    """Folders of datasets that the candidate was trained on."""

    def check(self) -> None:
        """Raises ConfigError."""
        if self.split not in ("val", "test"):
            raise ConfigError(f"--split {self.split!r} is no held-out split", _NOT_PROMOTED, "choose test, or val")
        if not 0 <= self.margin < float("inf"):
            raise ConfigError(f"--margin {self.margin:g} is no number of 0 or more", _NOT_PROMOTED,
                              "give the loss that is tolerated, such as 0.002")
        if not 100 <= self.resamples <= 100_000:
            raise ConfigError(f"--bootstrap {self.resamples} is not from 100 to 100000", _NOT_PROMOTED,
                              f"leave it out for {RESAMPLES}")
        if self.force and not self.reason.strip():
            raise ConfigError("--force is given without --reason", _NOT_PROMOTED, "say why, for the registry")


def run_promote(candidate: Path, root: Path, data: Path, terms: Terms, tell: Tell) -> dict[str, Any]:
    """Compare a bundle with the current one on the frozen split and make it current, if it is no worse.

    Returns what `promote --json` prints; "promoted" is false where it was refused. Raises any DistribError; whatever
    happens, what was current stays so until the last step.
    """
    from distrib.registry.compare import as_json, check_metric, refusal  # scikit-learn takes a second

    terms.check()
    registry = open_registry(root, new=True)
    loaded, before = load_bundle(candidate), registry.current()
    if before is not None and before.bundle_sha256 == loaded.sha256:
        raise ConfigError(f"{candidate} is the current bundle of {root} already (entry {before.number})",
                          "there is nothing to promote", "name another bundle")
    manifest = load_manifest(data)
    check_classes(manifest, loaded.bundle.classes, str(candidate))
    samples = manifest.samples(next(split for split in SPLITS if split == terms.split))
    _check_leaks(loaded, candidate, manifest, samples, terms.trained_on)
    digest = split_digest(samples)
    _check_frozen(before, registry, digest, terms)
    experiment = _experiment(loaded)
    metric = terms.metric or experiment.evaluate.metric
    compared = _judge(registry, loaded, before, data, samples, terms, tell)
    check_metric(compared, metric)
    refused = refusal(compared, metric, terms.margin, terms.strict) if before is not None else None
    judgement = Judgement(
        dataset_sha256=manifest.sha256, split=terms.split, test_sha256=digest, num_samples=len(samples),
        num_groups=len(set(samples.groups)), resamples=terms.resamples, metric=metric, margin=terms.margin,
        metrics=compared, refused=refused)
    entry = _entry(loaded.bundle, loaded.sha256, before, "promote", terms.reason, judgement)
    promoted = refused is None or terms.force
    if promoted:
        append(registry, entry, candidate)
    return {"promoted": promoted, "registry": str(root), "refused": refused, "forced": refused is not None and promoted,
            "entry": entry.number if promoted else None, "current": entry.number if promoted or before is None
            else before.number, "bundle_sha256": loaded.sha256, "dataset_sha256": manifest.sha256, "split": terms.split,
            "test_sha256": digest, "num_samples": judgement.num_samples, "num_groups": judgement.num_groups,
            "metric": metric, "margin": terms.margin, "metrics": as_json(compared)}


def run_rollback(root: Path, to: int | None, reason: str) -> dict[str, Any]:
    """Make a former promotion's bundle current again, by a new entry; by default the one before the current one's.

    Raises BundleError, ConfigError, StorageError.
    """
    registry = open_registry(root)
    before = registry.current()
    if before is None:
        raise ConfigError(f"nothing was ever promoted into {root}", "there is nothing to go back to",
                          "promote a bundle")
    if to is None:
        parent = registry.entry(before.origin).parent
        if parent is None:
            raise ConfigError(f"entry {before.origin} of {root} is the first", "there is nothing to go back to",
                              "name another entry of `distrib promote --list` with --to, or promote another bundle")
        to = registry.entry(parent).origin
    if not 1 <= to <= before.number:
        raise ConfigError(f"--to {to} is no entry of {root} (it has 1 to {before.number})", "nothing was changed",
                          "choose one of `distrib promote --list`")
    target = registry.entry(registry.entry(to).origin)
    if target.bundle_sha256 == before.bundle_sha256:
        raise ConfigError(f"the bundle of entry {to} is the current one already", "nothing was changed",
                          "choose another of `distrib promote --list`")
    loaded = registry.load(target)
    entry = _entry(loaded.bundle, loaded.sha256, before, "rollback", reason, None, target.number)
    append(registry, entry, loaded.path, link=True)
    return {"registry": str(root), "entry": entry.number, "current": entry.number, "restores": target.number,
            "bundle_sha256": entry.bundle_sha256}


def run_list(root: Path) -> dict[str, Any]:
    """All entries, the oldest first. Raises BundleError, ConfigError."""
    registry = open_registry(root)
    entries = registry.history()
    return {"registry": str(root), "current": registry.current_number(),
            "entries": [entry.model_dump(mode="json") for entry in entries]}


def _entry(bundle: Bundle, sha256: str, before: Entry | None, action: Any, reason: str, judgement: Judgement | None,
           restores: int | None = None) -> Entry:
    return Entry(
        number=1 if before is None else before.number + 1, action=action,
        when=datetime.now(UTC).isoformat("T", "seconds"), who=_user(), reason=reason, bundle_sha256=sha256,
        weights_sha256=bundle.weights.sha256,
        trained_on_sha256=bundle.dataset_sha256, parent=None if before is None else before.number, restores=restores,
        judgement=judgement)


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # in a container without a user database
        return f"uid {os.getuid()}"


def _experiment(loaded: LoadedBundle) -> Experiment:
    return validate(Experiment, loaded.bundle.experiment, f"{loaded.path}: experiment")


def _check_frozen(before: Entry | None, registry: Registry, digest: str, terms: Terms) -> None:
    """Raises DataError where the test is not the one that the current bundle passed."""
    if before is None or terms.new_test:
        return
    judged = registry.entry(before.origin).judgement
    if judged is not None and (judged.split, judged.test_sha256) != (terms.split, digest):
        raise DataError(f"the {terms.split} split is not the one that the current bundle (entry {before.number}) was "
                        "promoted on", "scores on it are not those of the registry, so it was not promoted",
                        "give the dataset with the same test split, or judge both on the new one with --new-test")


def _check_leaks(loaded: LoadedBundle, candidate: Path, manifest: Manifest, samples: SplitSamples,
                 trained_on: Sequence[Path]) -> None:
    """Raises DataError if the model has seen something of the test, or if what it has seen can not be known."""
    experiment = _experiment(loaded)
    data = experiment.data
    known = [manifest, *map(load_manifest, trained_on)]
    with contextlib.suppress(ManifestError):  # it may have been moved
        known.append(load_manifest(data.dataset))
    start, own = experiment.model.start, loaded.bundle.dataset_sha256
    in_folds = {*((own,) if data.learns_val else ()), *(start.in_folds if start is not None else ())}
    for recorded in dict.fromkeys((own, *(start.datasets if start is not None else ()))):
        found = next(((one, version) for one in known if (version := version_of(one, recorded)) is not None), None)
        if found is None:
            whose = "" if recorded == own else "the start of "
            raise DataError(f"the dataset that {whose}{candidate} was trained on is not known here",
                            "whether it has seen the test can not be known, so it was not promoted",
                            "name its folder with --trained-on")
        if leaked := leaks(samples, seen_by(found[0], samples.split, found[1], in_folds=recorded in in_folds)):
            group = samples.groups[samples.keys.index(leaked[0])]
            raise DataError(f"{len(leaked)} of {len(samples)} {samples.split} samples are of groups or images that "
                            f"{candidate} was trained on, such as {leaked[0]} of group {group}",
                            "its score would be too good, so it was not promoted",
                            "split the data by group, train again, and judge on what was held out")


def _judge(registry: Registry, loaded: LoadedBundle, before: Entry | None, data: Path, samples: SplitSamples,
           terms: Terms, tell: Tell) -> Any:
    from distrib.registry.compare import Answers, check_known, compare, over_classes

    classes = loaded.bundle.classes
    theirs = registry.load(before) if before is not None else None
    if theirs is not None:
        check_known(theirs.bundle.classes, classes)
    candidate = Answers(_scored(loaded, data, samples), loaded.bundle.threshold)
    current = None
    if theirs is not None:
        own = theirs.bundle.classes
        current = over_classes(Answers(_scored(theirs, data, samples), theirs.bundle.threshold), own, classes)
        if len(own) != len(classes):
            tell(f"note: the current bundle knows {len(own)} classes and the candidate {len(classes)}; the largest "
                 "probability decides its labels")
    return compare(candidate, current, samples.labels, samples.groups, classes, _experiment(loaded).evaluate,
                   terms.resamples)


def _scored(loaded: LoadedBundle, data: Path, samples: SplitSamples) -> Logits:
    """logits_NK [N, the bundle's own classes] of every sample."""
    preprocessing, experiment = loaded.bundle.preprocessing, _experiment(loaded)
    with Runtime(loaded) as model, ShardReader(data, samples) as reader:
        own = SplitSamples(samples.split, loaded.bundle.classes, samples.shards)
        return score_split(model, reader, own, EvalTransform(preprocessing.image_size, preprocessing.eval_crop),
                           batch=experiment.evaluate.batch, decode_threads=experiment.data.decode_threads)


def describe(entries: Sequence[dict[str, Any]], current: int | None) -> list[str]:
    """One line an entry, for people."""
    lines = []
    for entry in entries:
        judged = entry["judgement"]
        what = f"restores {entry['restores']}"
        if judged is not None:
            one = judged["metrics"][judged["metric"]]
            what = f"{judged['metric']} " + ("-" if one["candidate"] is None else f"{one['candidate']:.4f}")
            if one["difference"] is not None:
                what += f" ({one['difference']:+.4f})"
            if judged["refused"]:
                what += ", forced"
        lines.append(f"{'*' if entry['number'] == current else ' '} {entry['number']:4d}  {entry['when']}  "
                     f"{entry['who']}  {entry['action']}  {entry['bundle_sha256'][:16]}  {what}"
                     + (f"  {entry['reason']}" if entry["reason"] else ""))
    return lines
