"""One trial's training: an ordinary run in a process of its own, watched by what it writes into its folder."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from distrib.config import Experiment, load_run_experiment
from distrib.data.order import num_steps
from distrib.errors import ConfigError, DivergedError, StorageError
from distrib.rundir import RunDir
from distrib.train.settle import FREE, differences, with_precision

TRIES = 3
"""Starts in a row of a trial that is killed each time without having come further."""
_CHECKPOINT = re.compile(r"step-(\d{9,})")


@dataclass(frozen=True)
class Ended:
    """What became of a training's process."""

    how: Literal["complete", "diverged", "failed", "again"]
    """again: it was killed, and goes on from its checkpoint."""
    message: str = ""


def judge(code: int, score: float | None, error: str, came_further: bool, starts: int) -> Ended:
    """What became of a process with this exit code (below 0: that signal). Pure.

    ``score`` is the finished run's; ``starts`` are those in a row that came no further.
    """
    if score is not None:
        return Ended("complete")
    if code == DivergedError.exit_code:
        return Ended("diverged", error or "the loss is not a finite number")
    number = -code if code < 0 else code - 128
    if number > 0:
        if came_further or starts < TRIES:
            return Ended("again", f"ended by signal {number}")
        return Ended("failed", f"ended by signal {number}, {starts} times in a row without a new checkpoint")
    return Ended("failed", error or f"exit code {code}, without a result")


@dataclass(frozen=True)
class Validation:
    epochs: int
    """Whole passes over the training split."""
    score: float
    """Of evaluate.metric; higher is better."""


class Metrics:
    """Reads the validations that a run adds to its metrics, each once, also if the file is written anew between."""

    def __init__(self, run: RunDir, experiment: Experiment, num_samples: int) -> None:
        self._path, self._batch, self._samples = run.metrics, experiment.train.global_batch, num_samples
        self._inode, self._offset, self._last_step = 0, 0, 0

    def read(self) -> Iterator[Validation]:
        """Those that came since the last call. Raises StorageError."""
        for line in self._lines():
            try:
                record = json.loads(line)
                if record.get("event") != "validation" or record["step"] <= self._last_step:
                    continue
                step, score = int(record["step"]), float(record["validation"]["score"])
                if not math.isfinite(score):
                    raise ValueError(f"a score of {score}")
            except (ValueError, TypeError, LookupError, AttributeError) as error:
                raise StorageError(f"{self._path} is damaged: a validation in it can not be read ({error})",
                                   "the study stopped",
                                   f"restore it, or remove {self._path.parent} to train that trial anew") from error
            self._last_step = step
            yield Validation(step * self._batch // self._samples, score)

    def _lines(self) -> Iterator[bytes]:
        try:
            with self._path.open("rb") as file:
                status = os.fstat(file.fileno())
                if status.st_ino != self._inode or status.st_size < self._offset:
                    self._inode, self._offset = status.st_ino, 0
                file.seek(self._offset)
                for line in file:
                    if not line.endswith(b"\n"):
                        return
                    self._offset += len(line)
                    if b'"validation"' in line:
                        yield line
        except FileNotFoundError:
            return


def check_begun(run: RunDir, experiment: Experiment) -> None:
    """Raises ConfigError if a run was begun with another experiment than this, CheckpointError if it is damaged."""
    begun = load_run_experiment(run)
    if experiment.train.precision == "auto":  # whatever it meant where the run was begun
        experiment = with_precision(experiment, begun.train.precision)
    changed = [name for name in differences(begun.model_dump(mode="json"), experiment.model_dump(mode="json"))
               if not name.startswith(FREE)]
    if changed:
        raise ConfigError(f"{run.root} was begun with another {', '.join(changed)} than the study's storage holds",
                          "its score would be told of what was not trained", "restore the storage from a backup")


def total_epochs(experiment: Experiment, num_samples: int) -> int:
    """Whole passes over the training split in a whole run."""
    train = experiment.train
    steps = train.steps or num_steps(num_samples, train.epochs, train.global_batch)
    return steps * train.global_batch // num_samples


def result_score(run: RunDir) -> float | None:
    """The best score of a run that has finished; None of one that has not. Raises ValueError, TypeError, KeyError,
    OSError."""
    try:
        result = json.loads(run.result.read_bytes())
    except FileNotFoundError:
        return None
    score = float(result["best_score"])
    if not math.isfinite(score):
        raise ValueError(f"its best_score is {score}")
    return score


def last_checkpoint(run: RunDir) -> int:
    """The step of a run's newest checkpoint; 0 without one."""
    names = os.listdir(run.checkpoints) if run.checkpoints.exists() else []
    return max((int(match[1]) for match in map(_CHECKPOINT.fullmatch, names) if match), default=0)


def last_error(log: Path) -> str:
    """The last error that a training told, without its prefix; empty if none."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 65536))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.removeprefix("error: ") for line in reversed(lines) if line.startswith("error: ")), "")
