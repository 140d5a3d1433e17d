"""What a trial tries: drawn by Optuna, from a seed of the trial's own."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping
from typing import Any

from optuna import Study as OptunaStudy
from optuna.distributions import BaseDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, Trial

from distrib.tune.space import Axes, Axis, in_order, is_active, number_type
from distrib.tune.study import Study


class SeededByTrial(BaseSampler):
    """A sampler whose draws follow from the study's seed, the trial's number and what is known of the others.

    So a trial whose drawing was interrupted is the same when another process goes on with it, and processes that draw
    at the same time do not draw the same.
    """

    def __init__(self, study: Study) -> None:
        self._study = study
        self._current: BaseSampler = RandomSampler()

    def before_trial(self, study: OptunaStudy, trial: FrozenTrial) -> None:  # noqa: ARG002
        self._current = self._sampler(trial.number, "")

    def infer_relative_search_space(self, study: OptunaStudy, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self._current.infer_relative_search_space(study, trial)

    def sample_relative(self, study: OptunaStudy, trial: FrozenTrial,
                        search_space: dict[str, BaseDistribution]) -> dict[str, Any]:
        return self._current.sample_relative(study, trial, search_space)

    def sample_independent(self, study: OptunaStudy, trial: FrozenTrial, param_name: str,
                           param_distribution: BaseDistribution) -> Any:
        # By its name too: else all keys would get the same random number.
        return self._sampler(trial.number, param_name).sample_independent(study, trial, param_name, param_distribution)

    def _sampler(self, number: int, key: str) -> BaseSampler:
        digest = hashlib.sha256(f"{self._study.seed} {number} {key}".encode()).digest()
        seed = int.from_bytes(digest[:4], "little")
        if self._study.sampler == "random":
            return RandomSampler(seed=seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            # group: keys that vary together are drawn together, also where others do not vary for all trials.
            return TPESampler(n_startup_trials=self._study.startup, seed=seed, multivariate=True, group=True,
                              constant_liar=True)


def draw(trial: Trial, axes: Axes, only: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What a trial gives to the keys that vary for it; what was drawn before is kept.

    ``only`` are the keys of a trial that is not drawn but given.
    """
    values: dict[str, Any] = {}
    for name in in_order(axes):
        if is_active(axes[name], values) and (only is None or name in only):
            values[name] = _draw_one(trial, name, axes[name])
    return values


def _draw_one(trial: Trial, name: str, axis: Axis) -> Any:
    if axis.choices is not None:
        labels = axis.labels
        return labels[str(trial.suggest_categorical(name, list(labels)))]
    assert axis.low is not None
    assert axis.high is not None
    if number_type(name) is int:
        return trial.suggest_int(name, int(axis.low), int(axis.high), log=axis.log, step=int(axis.step or 1))
    return trial.suggest_float(name, float(axis.low), float(axis.high), log=axis.log,
                               step=None if axis.step is None else float(axis.step))


def as_stored(axes: Axes, values: Mapping[str, Any]) -> dict[str, Any]:
    """Values as the storage holds them: choices by their labels."""
    labels = {name: {repr(choice): label for label, choice in axes[name].labels.items()} for name in values}
    return {name: labels[name][repr(value)] if axes[name].choices is not None else value
            for name, value in values.items()}


def as_drawn(axes: Axes, stored: Mapping[str, Any]) -> dict[str, Any]:
    """The reverse of `as_stored`."""
    return {name: axes[name].labels[stored[name]] if axes[name].choices is not None else stored[name]
            for name in in_order(axes) if name in stored}
