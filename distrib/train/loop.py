"""The training loop: periods, validations, checkpoints, until the end or a request to stop."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import torch
from torch import Tensor, nn

from distrib.checkpoint import Checkpoint
from distrib.checkpoint_parts import PartWriter
from distrib.checkpoint_writer import CheckpointWriter
from distrib.config import EarlyStoppingConfig, Experiment
from distrib.data.order import num_steps
from distrib.errors import DivergedError
from distrib.train.log import RunLog
from distrib.train.optimise import MovingAverage, optimizer_tensors
from distrib.train.pace import Pace, Period
from distrib.train.reduction import Stop
from distrib.train.watch import Watch

Validate = Callable[[Mapping[str, Tensor]], dict[str, Any]]
"""Collective: weights to scores, of which ``score`` (higher is better) decides; equal on all ranks."""


def total_steps(experiment: Experiment, num_samples: int) -> int:
    """Steps of a whole run over ``num_samples`` training samples."""
    train = experiment.train
    return train.steps or num_steps(num_samples, train.epochs, train.global_batch)


@dataclass
class Best:
    """The best validation so far, and how long ago it was."""

    score: float | None = None
    step: int = 0
    validations_since: int = 0

    def take(self, score: float, step: int, min_delta: float) -> None:
        if self.score is None or score > self.score + min_delta:
            self.score, self.step, self.validations_since = score, step, 0
        else:
            self.validations_since += 1

    def gives_up(self, config: EarlyStoppingConfig | None) -> bool:
        return config is not None and self.validations_since >= config.patience


@dataclass
class Progress:
    """How far a run is, always at the end of a period: the same on all ranks, but for a rank that fell behind."""

    step: int = 0
    before: int = 0
    """Where the period began that ended at ``step``."""
    is_settled: bool = True
    """Whether the validation and the checkpoint that are due after ``step`` are done too."""
    best: Best = field(default_factory=Best)
    validation: dict[str, Any] | None = None
    """After ``step``."""
    records: list[dict[str, Any]] = field(default_factory=list)
    """What the log says of the last period's steps."""


class Pause(Enum):
    """Why training stops at the end of a period, to go on."""

    REGROUP = "somebody wants to join"
    DISAGREED = "ranks hold different states, and the last ones may not be used"
    MOVED = "lanes are to move to other ranks"


@dataclass
class Trained:
    """How training ended."""

    finished: bool
    """False when it was asked to stop before its end; it goes on from its last checkpoint."""
    early: bool
    pause: Pause | None = None
    """Why it only paused."""


@dataclass
class Trainer:
    """One rank's part of a run, from ``progress`` on. Validations, checkpoints and stops that
    are due within a period happen at its end, where all ranks hold the same state."""

    experiment: Experiment
    num_samples: int
    """In the training split."""
    total_steps: int
    model: nn.Module
    optimizer: torch.optim.Optimizer
    """Its state goes into checkpoints."""
    pace: Pace
    validate: Validate | None
    average: MovingAverage | None
    progress: Progress
    """Kept up to date; what is raised in between leaves it, and all else, at the end of a period."""
    log: RunLog | None
    """Only on rank 0."""
    writer: CheckpointWriter | PartWriter | None
    """Rank 0's, and that of one rank on each other host."""
    wish: Callable[[], Stop]
    watch: Watch | None
    agree: Callable[[], bool]
    """Collective: whether all ranks hold the same state."""
    guarded: Callable[[int, int], bool]
    """Whether to ask for that after the steps from one to another, even if nothing is due to be written."""
    moves: Callable[[], bool]
    """Whether lanes are to move to other ranks; the same on all."""
    decide: Callable[[Stop], Stop] = lambda stop: stop
    """Collective: what is done of the greatest wish."""
    _last_checkpoint: int | None = field(default=None, init=False)

    def run(self) -> Trained:
        """Collective. Raises DivergedError, StorageError, ShardError, WorldError."""
        progress = self.progress
        self._last_checkpoint = progress.step or None
        if self.log is not None:
            self.log.steps(progress.records)  # of a period whose end the rank that logged before did not see
        stop, agreed, moved = Stop.NO, True, False
        if not progress.is_settled:
            agreed = self._settle(stop)
        while agreed and progress.step < self.total_steps and not (stop or moved or self._gives_up()):
            stop = self.one_period()
            agreed, moved = self._settle(stop), self.moves()
        if not agreed:
            return Trained(False, False, Pause.DISAGREED)
        early = self._gives_up()
        finished = early or progress.step >= self.total_steps
        if self.writer is not None and (finished or stop is Stop.END):
            self.writer.wait()
        if finished or stop is Stop.END:
            return Trained(finished, early)
        return Trained(finished, early, Pause.REGROUP if stop is Stop.REGROUP else Pause.MOVED)

    def one_period(self) -> Stop:
        """The next period, without what is due after it; the greatest of all ranks' wishes."""
        progress, start = self.progress, time.perf_counter()
        period = self.pace.run(progress.step, self.wish())
        if period.diverged is not None:
            self._diverged(progress.step + period.diverged)
        before, end = progress.step, progress.step + len(period.steps)
        if self.average is not None:
            self.average.update(end, len(period.steps))
        total_s = time.perf_counter() - start
        records = list(_step_records(before, period, self.experiment.train.global_batch, total_s))
        progress.before, progress.step, progress.is_settled = before, end, False
        progress.records, progress.validation = records, None
        if self.log is not None:
            self.log.steps(records)
        if self.watch is not None:
            self.watch.after(before, period, total_s, last=end >= self.total_steps)
        return self.decide(period.stop)

    def _settle(self, stop: Stop) -> bool:
        """The validation and the checkpoint that are due after a period; False if the ranks disagree, and none is."""
        progress = self.progress
        before, step = progress.before, progress.step
        validates = self.validate is not None and stop is not Stop.END and self._is_validation(before, step)
        writes = validates or stop is Stop.END or self._is_checkpoint(before, step) or step == self.total_steps
        if (writes or self.guarded(before, step)) and not self.agree():
            return False
        if validates:
            progress.validation = self._validation(step)
        progress.is_settled = True
        if writes:
            self.checkpoint(last=stop is Stop.END or step == self.total_steps or self._gives_up())
        return True

    def _gives_up(self) -> bool:
        return self.progress.best.gives_up(self.experiment.train.early_stopping)

    def _is_validation(self, before: int, step: int) -> bool:
        """Whether a pass over the data (or several, as configured) ends within these steps, or the run does."""
        samples = self.num_samples * self.experiment.evaluate.every_epochs
        batch = self.experiment.train.global_batch
        return step * batch // samples > before * batch // samples or step == self.total_steps

    def _is_checkpoint(self, before: int, step: int) -> bool:
        every = self.experiment.checkpoint.every_steps
        return every > 0 and step // every > before // every

    def _weights(self) -> Mapping[str, Tensor]:
        return self.average.tensors if self.average is not None else self.model.state_dict()

    def _validation(self, step: int) -> dict[str, Any]:
        assert self.validate is not None
        start = time.perf_counter()
        scores = self.validate(self._weights())
        stopping = self.experiment.train.early_stopping
        best = self.progress.best
        best.take(scores["score"], step, stopping.min_delta if stopping else 0.0)
        if self.log is not None:
            metric = self.experiment.evaluate.metric
            self.log.validation(step, {**scores, "seconds": time.perf_counter() - start})
            mark = " (best so far)" if best.step == step else ""
            self.log.note(f"validation after step {step}: {metric} {scores[metric]:.4f}, "
                          f"loss {scores['loss']:.4f}{mark}")
        return scores

    def checkpoint(self, *, last: bool = False) -> None:
        """Begin to write where the run is."""
        if self.writer is None:
            return
        step, best = self.progress.step, self.progress.best
        progress = {"reduction": self.pace.state(), "best": vars(best).copy(), "validation": self.progress.validation}
        self.writer.submit(step, lambda: Checkpoint(
            step, _clones(self.model.state_dict()), _clones(optimizer_tensors(self.model, self.optimizer)),
            _clones(self.average.tensors) if self.average is not None else None, progress,
        ), last=last)

    def _diverged(self, step: int) -> None:
        last = self._last_checkpoint
        if self.writer is not None:
            last = self.writer.settle() or last
            if self.log is not None:
                self.log.event("diverged", step)
        raise DivergedError(
            f"at step {step} the loss or a gradient is not a finite number",
            f"training stopped; the last good checkpoint is that of step {last}" if last is not None
            else "training stopped before its first checkpoint",
            "lower train.lr, add train.warmup_epochs or train.clip_norm, or look for bad images; "
            "then start in a new --run folder",
        )


def _clones(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def _step_records(before: int, period: Period, global_batch: int, total_s: float) -> Iterator[dict[str, Any]]:
    """A record for each step of a period, which share its seconds evenly."""
    count = len(period.steps)
    measured_s = period.data_s + period.compute_s + period.communication_s
    for number, step in enumerate(period.steps):
        yield {
            "step": before + number + 1,
            "loss": step.loss,
            "accuracy": step.accuracy,
            "lr": step.rate,
            "images_per_s": count * global_batch / total_s,
            "step_s": total_s / count,
            "data_s": period.data_s / count,
            "compute_s": period.compute_s / count,
            "communication_s": period.communication_s / count,
            "rest_s": (total_s - measured_s) / count,
            "repeats": period.repeats,
        }
