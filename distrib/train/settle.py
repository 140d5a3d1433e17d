"""What is to be trained, where, and on which data: settled before torch is imported, so that mistakes show at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from distrib.bundle import FILE_NAME as BUNDLE_NAME
from distrib.bundle import load_bundle
from distrib.config import Experiment, load_experiment, load_run_experiment
from distrib.data.folds import load_view
from distrib.data.manifest import FILE_NAME, Manifest, read_record
from distrib.decision import positive_index
from distrib.documents import apply_overrides, validate
from distrib.errors import BundleError, CheckpointError, ConfigError, counted
from distrib.rundir import RunDir
from distrib.world import World

FREE = ("data.dataset", "data.decode_threads", "data.prefetch_steps", "comm.", "checkpoint.", "train.ledger",
        "evaluate.bootstrap", "model.weights", "model.start.source", "watch.", "guard.")
"""Keys, or beginnings of keys, that do not change the model, so that a run may go on with other values."""


@dataclass(frozen=True)
class Settled:
    """A run that is to begin or to go on."""

    run: RunDir
    experiment: Experiment
    """Complete, but for a precision of auto in a new run: rank 0's processor decides that for all ranks."""
    manifest: Manifest
    """With the fold as its validation split, where the experiment names one."""
    source: Path | None = None
    """The run or bundle whose weights a new run begins with, still to be read."""

    def with_experiment(self, experiment: Experiment) -> Settled:
        """A copy for another experiment."""
        return replace(self, experiment=experiment)


def settle(experiment_path: Path | None, overrides: Sequence[str], run_path: Path | None, world: World,
           source: Path | None = None) -> Settled:
    """Read and compare the documents; local, and writes nothing. ``source`` is a run or bundle to start from.

    Raises BundleError, ConfigError, CheckpointError, ManifestError.
    """
    run = _run_folder(experiment_path, run_path)
    experiment = settle_experiment(run, experiment_path, overrides, source)
    if experiment.data.folds is not None and experiment.data.fold is None:
        raise ConfigError(f"data.folds = {experiment.data.folds}, and data.fold does not say which to validate on",
                          "nothing was started",
                          "add --set data.fold=0, or train one run for each with `distrib ensemble --folds`")
    manifest = load_view(experiment.data)
    _check_world(experiment, world)
    _check_dataset(run, experiment, manifest)
    if run.experiment.exists():
        source = None  # the run keeps what it began with
    elif source is not None:
        _check_source(source, experiment)
    return Settled(run, experiment, manifest, source)


def settle_experiment(run: RunDir, path: Path | None, overrides: Sequence[str],
                      source: Path | None = None) -> Experiment:
    """The experiment to run: the file's, or the run's own when it goes on.

    Raises ConfigError if both exist and differ in a key that changes the model, or in what they start from.
    """
    if not run.experiment.exists():
        if path is None:
            raise ConfigError(f"{run.root} is no run to go on with", "there is nothing to train",
                              "give EXPERIMENT.yaml to begin one there")
        return load_experiment(path, overrides)
    begun = load_run_experiment(run)
    if path is not None:
        wanted = load_experiment(path, overrides)
    else:
        wanted = validate(Experiment, apply_overrides(begun.model_dump(mode="json"), overrides), str(run.experiment))
    if wanted.train.precision == "auto":  # whatever it meant where the run was begun
        wanted = with_precision(wanted, begun.train.precision)
    if source is not None and (begun.model.start is None or begun.model.start.source != str(source)):
        begin = f"from {begun.model.start.source}" if begun.model.start is not None else "without --from"
        raise ConfigError(f"{run.root} was begun {begin}, not from {source}", "the run was not continued",
                          "leave --from out to go on, or give another --run folder")
    if wanted.model.start is None:
        wanted = wanted.model_copy(update={"model": wanted.model.model_copy(update={"start": begun.model.start})})
    changed = [name for name in differences(begun.model_dump(mode="json"), wanted.model_dump(mode="json"))
               if not name.startswith(FREE)]
    if changed:
        warm = "" if "model.name" in changed else f", with --from {run.root} to start with its weights"
        raise ConfigError(f"{run.root} was begun with another {', '.join(changed)}", "the run was not continued",
                          f"give the run's own values, or train into another --run folder{warm}")
    return wanted


def _run_folder(experiment_path: Path | None, run_path: Path | None) -> RunDir:
    if run_path is not None:
        return RunDir(run_path)
    if experiment_path is None:
        raise ConfigError("neither an experiment nor --run is given", "there is nothing to train",
                          "give EXPERIMENT.yaml, or --run DIR to go on with a run")
    return RunDir(Path("runs") / experiment_path.stem)


def _check_world(experiment: Experiment, world: World) -> None:
    lanes = experiment.train.lanes
    if world.size > lanes:
        raise ConfigError(f"{world.size} ranks for train.lanes = {lanes}", "some ranks would have nothing to do",
                          f"start at most {counted(lanes, 'rank')}, or begin a new run with more lanes")


def _check_dataset(run: RunDir, experiment: Experiment, manifest: Manifest) -> None:
    """Raises ConfigError or CheckpointError unless these are data that the run can be trained on."""
    positive_index(manifest.classes, experiment.evaluate.positive_class)
    if run.experiment.exists() and read_record(run.dataset).dataset_sha256 != manifest.sha256:
        raise CheckpointError(
            f"the dataset {experiment.data.dataset / FILE_NAME} is not the one that {run.root} was begun with",
            "the run was not continued", "give the same dataset, or train into another --run folder")


def _check_source(source: Path, experiment: Experiment) -> None:
    """Raises BundleError, CheckpointError or ConfigError where a run can not start from this."""
    if experiment.model.weights is not None:
        raise ConfigError("--from and model.weights are both given", "only one can be started from", "leave one out")
    if (source / BUNDLE_NAME).exists():
        bundle = load_bundle(source).bundle
        if bundle.ensemble is not None:
            raise BundleError(f"the bundle {source} is an ensemble of {len(bundle.ensemble.members)} members",
                              "its weights are not those of one model", "start from the run of one of its members")
        if "torch" not in bundle.files:
            raise BundleError(f"the bundle {source} has no torch format (it has {', '.join(bundle.files)})",
                              "its weights can not be read", "start from its run, or export with --format torch")
        theirs = validate(Experiment, bundle.experiment, f"{source}: experiment")
    elif RunDir(source).experiment.exists():
        theirs = load_run_experiment(RunDir(source))
    else:
        raise ConfigError(f"--from {source} is neither a run nor a bundle", "nothing was started",
                          "name a folder that `distrib train --run` or `distrib export --out` wrote")
    if theirs.model.name != experiment.model.name:
        raise ConfigError(f"--from {source} is a {theirs.model.name}, and model.name = {experiment.model.name!r}",
                          "its weights do not fit", "name the same model, or start from another")


def with_precision(experiment: Experiment, precision: str) -> Experiment:
    """A copy that computes in another precision."""
    return experiment.model_copy(update={"train": experiment.train.model_copy(update={"precision": precision})})


def differences(first: Mapping[str, Any], second: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Dotted names of the keys whose values differ, in order."""
    for key in sorted(first.keys() | second.keys()):
        one, other = first.get(key), second.get(key)
        if isinstance(one, dict) and isinstance(other, dict):
            yield from differences(one, other, f"{prefix}{key}.")
        elif one != other:
            yield f"{prefix}{key}"
