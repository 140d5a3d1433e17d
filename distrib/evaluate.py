"""How good a run or a bundle is on a split of a dataset: every metric, with intervals."""

from __future__ import annotations

import csv
import errno
import io
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from distrib.bundle import FILE_NAME as BUNDLE_NAME
from distrib.bundle import LoadedBundle, load_bundle
from distrib.config import EvaluateConfig, Experiment, load_run_experiment
from distrib.data.folds import fold_view
from distrib.data.manifest import SPLITS, Manifest, Split, SplitSamples, load_manifest, read_record
from distrib.data.shards import ShardReader
from distrib.data.transform import EvalTransform
from distrib.decision import Threshold, decide, softmax
from distrib.documents import validate
from distrib.durable import replace_file
from distrib.errors import ConfigError, DataError, storage_errors
from distrib.rundir import RunDir
from distrib.runtimes.table import Runtime
from distrib.scoring import Forward, Logits, SumOverRanks, alone, compute_threads, score_split
from distrib.world import World

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Subject:
    """What is judged, from a run or from a bundle."""

    forward: Forward
    workers: int
    """Calls of ``forward`` at a time."""
    experiment: Experiment
    classes: tuple[str, ...]
    threshold: Threshold | None
    transform: EvalTransform
    identity: dict[str, Any]
    """What the report says about it."""
    learnt_val: bool = False
    """Whether it is an ensemble of folds, whose members were trained on the validation split."""


@dataclass(frozen=True)
class Scored:
    """A split of a dataset, and what a subject says of it."""

    target: Path
    subject: Subject
    folder: Path
    """The dataset's."""
    manifest: Manifest
    samples: SplitSamples
    logits_NK: Logits


def run_evaluate(target: Path, *, data: Path | None = None, split: str = "test", runtime: str | None = None,
                 world: World | None = None, sum_over_ranks: SumOverRanks = alone,
                 bootstrap: int | None = None, predictions: Path | None = None,
                 tell: Tell = lambda _: None) -> dict[str, Any]:
    """Judge a run's best checkpoint (in float32) or a bundle; returns what `evaluate --json` prints.

    Collective over the world's ranks; scores do not depend on their number. Ranks other than 0 return the
    report without intervals and write nothing. ``data`` is a dataset other than the experiment's,
    ``bootstrap`` another number of resamples, ``predictions`` a CSV to write, a line a sample.

    With two classes the threshold recorded at validation decides the labels; none is ever chosen here.
    Raises any DistribError.
    """
    world = world or World()
    if split not in SPLITS:
        raise ConfigError(f"--split {split!r} is unknown", "nothing was judged", f"choose one of {', '.join(SPLITS)}")
    if bootstrap is not None and bootstrap < 0:
        raise ConfigError(f"--bootstrap {bootstrap} is below 0", "nothing was judged", "give 0 to leave intervals out")
    if predictions is not None and world.is_first:
        check_writable(predictions, "predictions")
    with scored(target, data, split, runtime=runtime, world=world, sum_over_ranks=sum_over_ranks, tell=tell) as one:
        pass
    report = judge(one)
    if world.is_first:
        from distrib.intervals import bootstrap_intervals

        subject, samples, config = one.subject, one.samples, one.subject.experiment.evaluate
        resamples = config.bootstrap if bootstrap is None else bootstrap
        report["intervals"] = bootstrap_intervals(
            one.logits_NK, samples.labels, samples.groups, subject.classes, config, subject.threshold,
            resamples=resamples,
        ) if resamples else None
        if predictions is not None:
            _write_predictions(predictions, one.logits_NK, samples, subject)
        _notes(one.manifest, subject, samples.split, tell)
    return report


@contextmanager
def scored(target: Path, data: Path | None, split: str, *, runtime: str | None = None, world: World | None = None,
           sum_over_ranks: SumOverRanks = alone, tell: Tell = lambda _: None) -> Iterator[Scored]:
    """Score a split by a run's best checkpoint or by a bundle, whose model can be asked more inside the block.

    Collective over the world's ranks. Raises any DistribError.
    """
    world = world or World()
    with _subject(target, runtime, tell) as subject:
        folder = data or subject.experiment.data.dataset
        manifest = load_manifest(folder)
        check_classes(manifest, subject.classes, str(target))
        view = manifest if split == "test" else fold_view(manifest, subject.experiment.data)
        samples = view.samples(_split(split))
        with ShardReader(folder, samples) as reader:
            logits_NK = score_split(
                subject.forward, reader, samples, subject.transform, batch=subject.experiment.evaluate.batch,
                rank=world.rank, size=world.size, workers=subject.workers, sum_over_ranks=sum_over_ranks,
                decode_threads=subject.experiment.data.decode_threads,
            )
        yield Scored(target, subject, folder, manifest, samples, logits_NK)


def judge(one: Scored, config: EvaluateConfig | None = None) -> dict[str, Any]:
    """What `evaluate --json` prints, without intervals; with another ``config`` than the subject's own."""
    # scikit-learn takes a second to import: mistakes are told before, and export has no need of it.
    from distrib.metrics import measure

    subject, samples = one.subject, one.samples
    config = config or subject.experiment.evaluate
    report = {
        "target": str(one.target), **subject.identity, "split": samples.split, "dataset": str(one.folder),
        "dataset_sha256": one.manifest.sha256, **measure(one.logits_NK, samples.labels, subject.classes, config,
                                                         subject.threshold),
        "threshold": subject.threshold.model_dump(mode="json") if subject.threshold else None,
    }
    if subject.threshold is not None:  # what the plain rule would give, to compare with
        plain = measure(one.logits_NK, samples.labels, subject.classes, config)
        report["by_largest_probability"] = {name: plain[name] for name in ("accuracy", "balanced_accuracy")}
    return report


def check_classes(manifest: Manifest, classes: Sequence[str], whose: str) -> None:
    """Raises DataError unless a dataset has exactly these classes in this order."""
    if manifest.classes != tuple(classes):
        raise DataError(f"the dataset's classes are {some(manifest.classes)}, those of {whose} are {some(classes)}",
                        "labels would mean something else",
                        "give the dataset that it was trained on, or one with the same classes")


def classes_of(target: Path) -> tuple[tuple[str, ...], Path]:
    """(the classes of a run or bundle, the dataset of its experiment), by its documents. Raises any DistribError."""
    if (target / BUNDLE_NAME).exists():
        bundle = load_bundle(target).bundle
        return bundle.classes, validate(Experiment, bundle.experiment, f"{target}: experiment").data.dataset
    if RunDir(target).experiment.exists():
        experiment = load_run_experiment(RunDir(target))
        return read_record(RunDir(target).dataset).classes, experiment.data.dataset
    raise _neither(target)


def show_report(report: dict[str, Any], console: Console | None = None) -> None:
    """The report as tables for people, on stderr."""
    console = console or Console(stderr=True)
    intervals = (report.get("intervals") or {}).get("metrics", {})
    table = Table(title=f"{report['target']} on {report['num_samples']} {report['split']} samples")
    for column in ("metric", "value", "95% interval"):
        table.add_column(column, justify="left" if column == "metric" else "right")
    for name, words in METRIC_WORDS.items():
        if name in report:
            one = intervals.get(name, {})
            table.add_row(words.format(**report), _number(report[name]),
                          f"{_number(one['low'])} to {_number(one['high'])}" if one.get("low") is not None else "")
    console.print(table)
    table = Table(title=f"label: {report['decision_rule']}")
    columns = ("support", "precision", "recall", "f1", "auroc")
    table.add_column("class")
    for column in columns:
        table.add_column(column, justify="right")
    for name, one in report["per_class"].items():
        table.add_row(name, str(one["support"]), *(_number(one[column]) for column in columns[1:]))
    console.print(table)


METRIC_WORDS = {
    "accuracy": "accuracy", "balanced_accuracy": "balanced accuracy", "auroc": "AUROC",
    "average_precision": "average precision", "partial_auroc": "partial AUROC above TPR {partial_auroc_tpr_floor:g}",
    "sensitivity": "sensitivity", "specificity": "specificity",
    "sensitivity_at_specificity": "sensitivity at specificity {specificity_bound:g}",
    "specificity_at_sensitivity": "specificity at sensitivity {sensitivity_bound:g}",
    "calibration_error": "expected calibration error", "loss": "log loss", "brier": "Brier score",
}
"""Metrics in words, which take the report's bounds."""


@contextmanager
def _subject(target: Path, runtime: str | None, tell: Tell) -> Iterator[Subject]:
    if (target / BUNDLE_NAME).exists():
        loaded = load_bundle(target)
        with Runtime(loaded, runtime) as model:
            yield _of_bundle(loaded, model)
    elif RunDir(target).experiment.exists():
        if runtime is not None:
            raise ConfigError(f"--runtime {runtime} is for bundles, and {target} is a run", "nothing was judged",
                              "leave it out, or name a bundle")
        yield _of_run(target, tell)
    else:
        raise _neither(target)


def _neither(target: Path) -> ConfigError:
    return ConfigError(f"{target} is neither a run nor a bundle", "nothing was judged",
                       "name a folder that `distrib train --run` or `distrib export --out` wrote")


def _of_bundle(loaded: LoadedBundle, model: Runtime) -> Subject:
    bundle = loaded.bundle
    return Subject(
        forward=model, workers=1, experiment=validate(Experiment, bundle.experiment, f"{loaded.path}: experiment"),
        classes=bundle.classes, threshold=bundle.threshold,
        transform=EvalTransform(bundle.preprocessing.image_size, bundle.preprocessing.eval_crop),
        identity={"kind": "bundle", "runtime": model.name, "bundle_sha256": loaded.sha256,
                  "weights_sha256": bundle.weights.sha256, "step": bundle.weights.step,
                  "num_parameters": bundle.weights.num_parameters,
                  "trained_on_sha256": bundle.dataset_sha256},
        learnt_val=bundle.ensemble is not None and bundle.ensemble.held_out == "out_of_fold",
    )


def _of_run(target: Path, tell: Tell) -> Subject:
    import torch

    from distrib.forward import torch_forward
    from distrib.trained import load_trained

    trained = load_trained(RunDir(target), tell)
    data, threads = trained.experiment.data, trained.experiment.train.threads
    torch.set_num_threads(threads)  # as in training; the other cores take other batches
    return Subject(
        forward=torch_forward(trained.model, data.mean, data.std), workers=max(1, compute_threads() // threads),
        experiment=trained.experiment, classes=trained.classes, threshold=trained.threshold,
        transform=EvalTransform(data.image_size, data.eval_crop),
        identity={"kind": "run", "runtime": "torch fp32", "checkpoint": trained.checkpoint.path.name,
                  "weights_sha256": trained.weights_sha256, "step": trained.checkpoint.step,
                  "finished": trained.is_finished,
                  "num_parameters": sum(parameter.numel() for parameter in trained.model.parameters()),
                  "trained_on_sha256": trained.dataset_sha256},
    )


def _split(name: str) -> Split:
    return next(split for split in SPLITS if split == name)


def check_writable(path: Path, what: str) -> None:
    """Raises StorageError, before hours of work, where a file could not be written after them."""
    with storage_errors(f"the {what} {path} could not be written", "nothing was judged"):
        if path.exists() and not path.is_file():
            raise OSError(errno.EINVAL, "it is not a regular file")
        parent = next(folder for folder in path.absolute().parents if folder.exists())
        if not parent.is_dir():
            raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(parent))


def _write_predictions(path: Path, logits_NK: Logits, samples: SplitSamples, subject: Subject) -> None:
    probabilities_NK = softmax(logits_NK)
    predicted_N = decide(probabilities_NK, subject.classes, subject.threshold)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["key", "group", "class", "label", *(f"p_{name}" for name in subject.classes)])
    for number, row in enumerate(probabilities_NK):
        writer.writerow([samples.keys[number], samples.groups[number], subject.classes[samples.labels[number]],
                         subject.classes[predicted_N[number]], *(repr(float(value)) for value in row)])
    with storage_errors(f"the predictions {path} could not be written", "the report is lost"):
        path.absolute().parent.mkdir(parents=True, exist_ok=True)
        replace_file(path.absolute(), text.getvalue().encode())


def _notes(manifest: Manifest, subject: Subject, split: str, tell: Tell) -> None:
    if subject.threshold is None and len(subject.classes) == 2:
        tell("note: no decision threshold was recorded at validation, so the larger probability decides")
    if subject.learnt_val and split != "test":
        tell("note: most members of this ensemble of folds were trained on these samples; judge it on the test split")
    if split == "train":
        tell("note: these samples were trained on, so the scores say what was learnt, not how good the model is")
    trained_on = subject.identity["trained_on_sha256"]
    if trained_on is not None and trained_on != manifest.sha256:
        tell("note: this is another dataset than the one trained on; samples of it may have been trained on")


def some(classes: Sequence[str]) -> str:
    """Classes in a message."""
    return ", ".join(classes[:8]) + (f" and {len(classes) - 8} more" if len(classes) > 8 else "")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
