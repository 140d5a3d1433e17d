"""Candidate against current, sample by sample: differences of metrics with intervals, and what they decide. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from distrib.config import EvaluateConfig
from distrib.decision import Threshold
from distrib.errors import ConfigError, DataError
from distrib.intervals import bootstrap_draws, percentile_interval
from distrib.metrics import LOWER_IS_BETTER, Labels, measure
from distrib.registry.entry import Compared
from distrib.scoring import Logits

_SLACK = 1e-9  # a fall of exactly the margin is none beyond it
_NEVER = -1e4  # logit of a class that a model does not know


@dataclass(frozen=True)
class Answers:
    """One model's answers on the test samples."""

    logits_NK: Logits
    threshold: Threshold | None


def check_known(own: Sequence[str], classes: Sequence[str]) -> None:
    """Raises DataError if a class of the current bundle's ``own`` is not among ``classes``."""
    if gone := [name for name in own if name not in classes]:
        raise DataError(f"the current bundle knows the class {gone[0]!r}, which the dataset does not have",
                        "the two can not be compared", "give the dataset that both know")


def over_classes(one: Answers, own: Sequence[str], classes: Sequence[str]) -> Answers:
    """A model's answers over ``classes``, which hold all of its own, in whatever order.

    What it does not know has probability 0; then the largest probability decides, else its threshold, which names its
    class.
    """
    logits_NK = np.full((len(one.logits_NK), len(classes)), _NEVER, dtype=np.float32)
    logits_NK[:, [list(classes).index(name) for name in own]] = one.logits_NK
    return Answers(logits_NK, one.threshold if len(own) == len(classes) else None)


def compare(candidate: Answers, current: Answers | None, labels_N: Labels, groups: Sequence[str],
            classes: Sequence[str], config: EvaluateConfig, resamples: int) -> dict[str, Compared]:
    """Every headline metric of both; the interval is of the difference, whole groups drawn for both alike.

    Without a current one, the interval is of the candidate's value.
    """
    sides = [one for one in (candidate, current) if one is not None]
    values = [measure(one.logits_NK, labels_N, classes, config, one.threshold) for one in sides]
    draws = [bootstrap_draws(one.logits_NK, labels_N, groups, classes, config, one.threshold, resamples=resamples)
             for one in sides]
    result = {}
    for name in draws[0]:
        mine, theirs = values[0][name], values[1][name] if current is not None else None
        drawn_B = draws[0][name] - draws[1][name] if current is not None else draws[0][name]
        interval = percentile_interval(drawn_B)
        known = mine is not None and theirs is not None
        result[name] = Compared(candidate=mine, current=theirs, difference=mine - theirs if known else None,
                                low=interval["low"], high=interval["high"])
    return result


def check_metric(compared: dict[str, Compared], metric: str) -> None:
    """Raises ConfigError for a metric that there is not, DataError for one that the candidate has no value of."""
    if metric not in compared:
        raise ConfigError(f"--metric {metric!r} is unknown", "it was not promoted",
                          f"choose one of {', '.join(compared)}")
    if compared[metric].candidate is None:  # nothing could ever be compared with it
        raise DataError(f"{metric} is not defined on these samples", "it was not promoted",
                        "choose another --metric, or a split that has samples of every class")


def refusal(compared: dict[str, Compared], metric: str, margin: float, strict: bool) -> str | None:
    """Why the candidate is not to be promoted, or None.

    It is refused if it is worse than the current one by more than ``margin``; with ``strict`` also if it is not shown
    to be better than that, which is when the interval reaches below. Raises DataError for a metric that is not defined.
    """
    one = compared.get(metric)
    if one is None or one.difference is None or one.low is None or one.high is None:
        raise DataError(f"{metric} is not defined on these samples", "the two can not be compared",
                        f"choose another --metric of {', '.join(sorted(compared))}")
    sign = -1 if metric in LOWER_IS_BETTER else 1
    gain, least, most = sign * one.difference, *sorted((sign * one.low, sign * one.high))
    what = (f"{metric} {'rose' if sign < 0 else 'fell'} from {one.current:.4f} to {one.candidate:.4f}: a difference of "
            f"{one.difference:+.4f} (95% interval {one.low:+.4f} to {one.high:+.4f}")
    if gain < -margin - _SLACK:
        sure = "beyond chance" if most < 0 else "which may be chance"
        return f"{what}, {sure}), with --margin {margin:g}"
    if strict and least < -margin - _SLACK:
        return (f"{metric} went from {one.current:.4f} to {one.candidate:.4f}; the 95% interval of the difference, "
                f"{one.low:+.4f} to {one.high:+.4f}, does not rule out a loss beyond --margin {margin:g}")
    return None


def as_json(compared: dict[str, Compared]) -> dict[str, Any]:
    """Plain values."""
    return {name: one.model_dump(mode="json") for name, one in compared.items()}
