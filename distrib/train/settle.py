"""What is to be trained, where, and on which data: settled before torch is imported, so that mistakes show at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distrib.config import Experiment, load_experiment, load_run_experiment
from distrib.data.manifest import FILE_NAME, Manifest, load_manifest, read_record
from distrib.decision import positive_index
from distrib.documents import apply_overrides, validate
from distrib.errors import CheckpointError, ConfigError
from distrib.rundir import RunDir
from distrib.world import World

FREE = ("data.dataset", "data.decode_threads", "data.prefetch_steps", "comm.", "checkpoint.", "train.ledger",
        "evaluate.bootstrap", "model.weights", "watch.", "guard.")
"""Keys, or beginnings of keys, that do not change the model, so that a run may go on with other values."""


@dataclass(frozen=True)
class Settled:
    """A run that is to begin or to go on."""

    run: RunDir
    experiment: Experiment
    """Complete, but for a precision of auto in a new run: rank 0's processor decides that for all ranks."""
    manifest: Manifest


def settle(experiment_path: Path | None, overrides: Sequence[str], run_path: Path | None, world: World) -> Settled:
    """Read and compare the documents; local, and writes nothing. Raises ConfigError, CheckpointError, ManifestError."""
    run = _run_folder(experiment_path, run_path)
    experiment = settle_experiment(run, experiment_path, overrides)
    manifest = load_manifest(experiment.data.dataset)
    _check_world(experiment, world)
    _check_dataset(run, experiment, manifest)
    return Settled(run, experiment, manifest)


def settle_experiment(run: RunDir, path: Path | None, overrides: Sequence[str]) -> Experiment:
    """The experiment to run: the file's, or the run's own when it goes on.

    Raises ConfigError if both exist and differ in a key that changes the model.
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
    changed = [name for name in differences(begun.model_dump(mode="json"), wanted.model_dump(mode="json"))
               if not name.startswith(FREE)]
    if changed:
        raise ConfigError(f"{run.root} was begun with another {', '.join(changed)}", "the run was not continued",
                          "give another --run folder, or the run's own values")
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
                          f"start at most {lanes} ranks, or begin a new run with more lanes")


def _check_dataset(run: RunDir, experiment: Experiment, manifest: Manifest) -> None:
    """Raises ConfigError or CheckpointError unless these are data that the run can be trained on."""
    positive_index(manifest.classes, experiment.evaluate.positive_class)
    if run.experiment.exists() and read_record(run.dataset).dataset_sha256 != manifest.sha256:
        raise CheckpointError(
            f"the dataset {experiment.data.dataset / FILE_NAME} is not the one that {run.root} was begun with",
            "the run was not continued", "give the same dataset, or train into another --run folder")


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
