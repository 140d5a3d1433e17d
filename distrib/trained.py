"""A trained model out of its run's folder: the best weights, and what they were trained on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError
from torch import nn

from distrib.checkpoint import Checkpoint, best_checkpoint
from distrib.config import Experiment, load_run_experiment
from distrib.data.manifest import load_manifest
from distrib.decision import Threshold
from distrib.errors import CheckpointError, DistribError
from distrib.models.table import build_model
from distrib.models.weights import weights_sha256
from distrib.rundir import RunDir


@dataclass(frozen=True)
class Trained:
    run: RunDir
    experiment: Experiment
    checkpoint: Checkpoint
    model: nn.Module
    """In evaluation mode, float32."""
    classes: tuple[str, ...]
    weights_sha256: str
    dataset_sha256: str | None
    """The dataset that the run was begun with, where the run says so."""

    @property
    def validation(self) -> dict[str, Any]:
        """The report of the validation that chose this checkpoint; empty if there was none."""
        return self.checkpoint.progress.get("validation") or {}

    @property
    def threshold(self) -> Threshold | None:
        """The decision threshold chosen at that validation."""
        recorded = self.validation.get("threshold")
        try:
            return None if recorded is None else Threshold.model_validate(recorded)
        except ValidationError as error:
            raise CheckpointError(f"the checkpoint {self.checkpoint.path} records a decision threshold that is none: "
                                  f"{error.errors(include_url=False)[0]['msg']}", "its labels would be wrong",
                                  "use another checkpoint, or train again") from error


def load_trained(run: RunDir, tell: Callable[[str], None]) -> Trained:
    """Read a run's best checkpoint and build its model. Damaged checkpoints are named through ``tell``.

    Raises CheckpointError, ConfigError, MissingPartError.
    """
    experiment = load_run_experiment(run)
    checkpoint = best_checkpoint(run, tell)
    classes = _classes(experiment, checkpoint)
    model = build_model(experiment.model.name, len(classes), experiment.model.dropout)
    try:
        model.load_state_dict(checkpoint.weights)
    except RuntimeError as error:
        raise CheckpointError(f"the weights of {checkpoint.path} are not of model.name = {experiment.model.name!r} "
                              f"with {len(classes)} classes", "the model can not be rebuilt",
                              "use the version of the model's code that it was trained with") from error
    return Trained(run, experiment, checkpoint, model.eval(), classes, weights_sha256(checkpoint.weights),
                   _dataset_sha256(run))


def _classes(experiment: Experiment, checkpoint: Checkpoint) -> tuple[str, ...]:
    """As recorded at the validation, or of the dataset that the run was trained on."""
    recorded = (checkpoint.progress.get("validation") or {}).get("classes")
    if recorded:
        return tuple(recorded)
    try:
        return load_manifest(experiment.data.dataset).classes
    except DistribError as error:
        raise CheckpointError(f"the run never validated, so its classes stand only in its dataset, and there "
                              f"{error.fact}", "its outputs can not be named",
                              "put the dataset back where it was when the run began") from error


def _dataset_sha256(run: RunDir) -> str | None:
    try:
        return (run.root / "dataset.sha256").read_text().strip()
    except (OSError, UnicodeDecodeError):
        return None
