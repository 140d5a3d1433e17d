"""A trained model out of its run's folder: the best weights, and what they were trained on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError
from torch import nn

from distrib.checkpoint import Checkpoint, best_checkpoint
from distrib.config import Experiment, load_run_experiment
from distrib.data.manifest import read_record
from distrib.decision import Threshold
from distrib.errors import CheckpointError
from distrib.models.table import build_model
from distrib.models.weights import weights_sha256
from distrib.rundir import RunDir, is_finished


@dataclass(frozen=True)
class Trained:
    run: RunDir
    experiment: Experiment
    checkpoint: Checkpoint
    model: nn.Module
    """In evaluation mode, float32."""
    classes: tuple[str, ...]
    is_finished: bool
    weights_sha256: str
    dataset_sha256: str
    """The dataset that the run was begun with."""

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
    """Read a run's best checkpoint and build its model. Damaged checkpoints, and a run that has not come to its end,
    are named through ``tell``.

    Raises CheckpointError, ConfigError, MissingPartError.
    """
    experiment = load_run_experiment(run)
    checkpoint = best_checkpoint(run, tell)
    record = read_record(run.dataset)
    model = build_model(experiment.model.name, len(record.classes), experiment.model.dropout)
    try:
        model.load_state_dict(checkpoint.weights)
    except RuntimeError as error:
        raise CheckpointError(f"the weights of {checkpoint.path} are not of model.name = {experiment.model.name!r} "
                              f"with {len(record.classes)} classes", "the model can not be rebuilt",
                              "use the version of the model's code that it was trained with") from error
    if not (finished := is_finished(run)):
        tell(f"note: {run.root} was not trained to its end; this is its best checkpoint so far, of step "
             f"{checkpoint.step}")
    return Trained(run, experiment, checkpoint, model.eval(), record.classes, finished,
                   weights_sha256(checkpoint.weights),
                   record.dataset_sha256)
