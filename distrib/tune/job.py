"""A trial that this process sees to."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from optuna.trial import Trial

from distrib.children.training import num_ranks, start_training
from distrib.config import Experiment
from distrib.elastic.lease import Lease
from distrib.errors import StorageError, storage_errors
from distrib.rundir import RunDir
from distrib.tune.training import (
    Ended,
    Metrics,
    Validation,
    judge,
    last_checkpoint,
    last_error,
    result_score,
    total_epochs,
)

_CLAIM_LOOK_S = 1.0


class Job:
    """From the moment its lease is ours. ``cpus``: hardware threads of ``num_cores`` cores."""

    run: RunDir
    total_epochs: int

    def __init__(self, trial: Trial, claim: Lease, cpus: Sequence[int], num_cores: int) -> None:
        self.trial, self.number, self.claim = trial, trial.number, claim
        self._cpus, self._num_cores = cpus, num_cores
        self.failed = ""
        """Why it can not be begun."""
        self.pruned = self.abandoned = False
        self._process: subprocess.Popen[bytes] | None = None
        self._starts, self._started_at_step = 0, 0
        self._claim_seen = time.monotonic()

    def prepare(self, experiment: Experiment, run: RunDir, num_samples: int) -> None:
        """Say what is to be trained, unless it failed, before anything else is asked of this."""
        self.run, self._experiment = run, experiment
        self._metrics = Metrics(run, experiment, num_samples)
        self.total_epochs = total_epochs(experiment, num_samples)
        self._reported = set(self.trial.storage.get_trial(self.trial._trial_id).intermediate_values)

    @property
    def is_training(self) -> bool:
        return self._process is not None

    def start(self, source: Path, log: Path, cluster: Path) -> None:
        """Begin the run, or go on with it. Raises StorageError."""
        step = self.checkpoint()
        self._starts = 1 if step > self._started_at_step else self._starts + 1
        self._started_at_step = step
        with storage_errors(f"trial {self.number} could not be started", "the study stopped"):
            begin = [] if self.run.experiment.exists() else [source]
            with log.open("ab") as said:
                self._process = start_training([*begin, "--run", self.run.root], cluster,
                                               num_ranks(self._experiment, self._num_cores), self._cpus, said)

    def ended(self, log: Path) -> Ended | None:
        """What became of the training; None while it runs, or is to be started. Raises StorageError."""
        code = None if self._process is None else self._process.poll()
        score = self.score() if self._process is None or code is not None else None
        if self._process is None:
            return Ended("complete") if score is not None else None  # as whoever had it did not live to tell
        if code is None:
            return None
        self._process = None
        return judge(code, score, last_error(log), self.checkpoint() > self._started_at_step, self._starts)

    def validations(self) -> Iterator[Validation]:
        """Those that were not reported yet, by whomever."""
        for seen in self._metrics.read():
            if seen.epochs not in self._reported:
                self._reported.add(seen.epochs)
                yield seen

    def score(self) -> float | None:
        """The finished run's. Raises StorageError."""
        try:
            return result_score(self.run)
        except (ValueError, TypeError, KeyError, OSError) as error:
            raise StorageError(f"{self.run.result} can not be read: {error}", "the study stopped",
                               "remove it, and start the study again") from error

    def checkpoint(self) -> int:
        """The step from which the training would go on."""
        return last_checkpoint(self.run)

    def lost_claim(self) -> bool:
        """Whether another process has taken the trial over; looks now and then. Raises OSError."""
        if self.abandoned or time.monotonic() < self._claim_seen + _CLAIM_LOOK_S:
            return False
        self._claim_seen = time.monotonic()
        return not self.claim.is_ours()

    def ask_to_stop(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()

    def has_ended(self) -> bool:
        return self._process is None or self._process.poll() is not None

    def kill(self) -> None:
        """At once; the launcher's ranks die with it."""
        if self._process is not None and self._process.poll() is None:
            os.kill(self._process.pid, signal.SIGKILL)
