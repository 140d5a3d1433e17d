"""How good a model is on parts of a split: levels of a field, numbers cut into bins. Pure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distrib.config import EvaluateConfig
from distrib.data.samples import natural_order
from distrib.decision import Threshold
from distrib.errors import ConfigError, counted
from distrib.intervals import bootstrap_intervals
from distrib.metrics import Labels, measure
from distrib.report.words import short

MOST_LEVELS = 12
FEW_SAMPLES, FEW_OF_A_CLASS, FEW_GROUPS = 50, 10, 10
_MOST_AS_THEY_ARE = 6  # distinct numbers that are levels of their own
NOT_GIVEN = "not given"


@dataclass(frozen=True)
class Wish:
    """A field, and where its numbers are cut; no bounds: quartiles."""

    name: str
    bounds: tuple[float, ...] = ()


@dataclass(frozen=True)
class Level:
    """Some samples of a split, and how good a model is on them."""

    name: str
    num_samples: int
    num_groups: int
    num_positive: int | None
    """With two classes."""
    metrics: dict[str, Any]
    """name -> (value, interval)."""
    warnings: tuple[str, ...]


def parse_wish(text: str) -> Wish:
    """``FIELD`` or ``FIELD=40,60``, which cuts below 40, from 40, from 60 on. Raises ConfigError."""
    name, equals, bounds = text.rpartition("=")
    if not equals:
        return Wish(text)
    try:
        cuts = tuple(float(bound) for bound in bounds.split(","))
    except ValueError:
        return Wish(text)  # a field whose name has the sign
    if not name or not all(map(math.isfinite, cuts)) or any(low >= high for low, high in pairwise(cuts)):
        raise ConfigError(f"--subgroup {text!r} has bounds that do not rise", "no report was made",
                          "write it as --subgroup age=40,60")
    return Wish(name, cuts)


def split_levels(wish: Wish, values: Sequence[str | None]) -> list[tuple[str, NDArray[np.bool_]]]:
    """(name, member_N) of every level with samples; what has no value is one of its own, at the end.

    Numbers are cut at the wish's bounds, or into quartiles where there are more than 6 distinct ones. Of more than 12
    levels the rarest are one. Raises ConfigError for bounds of a field that is no number.
    """
    given_N = np.array([value is not None for value in values])
    numbers = [_number(value) for value in values if value is not None]
    is_numeric = bool(numbers) and all(number is not None for number in numbers)
    if wish.bounds and not is_numeric:
        odd = next(value for value in values if value is not None and _number(value) is None)
        raise ConfigError(f"--subgroup {wish.name} has bounds, and {odd!r} is no number", "no report was made",
                          "leave the bounds out")
    levels: list[tuple[str, NDArray[np.bool_]]]
    if is_numeric and (wish.bounds or len(set(numbers)) > _MOST_AS_THEY_ARE):
        number_N = np.array([math.nan if value is None else float(value) for value in values])
        bounds = wish.bounds or tuple(dict.fromkeys(np.quantile(number_N[given_N], (0.25, 0.5, 0.75)).tolist()))
        levels = _cut(number_N, bounds)
    else:
        counts = Counter(value for value in values if value is not None)
        names = [name for name, _ in counts.most_common()]
        shown = names if len(names) <= MOST_LEVELS else names[:MOST_LEVELS - 1]
        levels = [(name, np.array([value == name for value in values]))
                  for name in sorted(shown, key=natural_order)]
        if len(shown) < len(names):
            others = set(names) - set(shown)
            levels.append((f"{len(others)} rarer values", np.array([value in others for value in values])))
    levels.append((NOT_GIVEN, ~given_N))
    return [(name, member_N) for name, member_N in levels if member_N.any()]


def judge_levels(levels: Sequence[tuple[str, NDArray[np.bool_]]], logits_NK: NDArray[np.floating[Any]],
                 labels_N: Labels, groups: Sequence[str], classes: Sequence[str], config: EvaluateConfig,
                 threshold: Threshold | None, resamples: int) -> list[Level]:
    """The metrics of `shown_metrics` on every level."""
    group_N = np.asarray(groups)
    judged = []
    for name, member_N in levels:
        report = measure(logits_NK[member_N], labels_N[member_N], classes, config, threshold)
        own_groups = group_N[member_N].tolist()
        intervals = bootstrap_intervals(logits_NK[member_N], labels_N[member_N], own_groups, classes, config,
                                        threshold, resamples=resamples)["metrics"] if resamples else {}
        support = [one["support"] for one in report["per_class"].values()]
        positive = report.get("positive_class")
        judged.append(Level(
            name, int(member_N.sum()), len(set(own_groups)),
            report["per_class"][positive]["support"] if positive is not None else None,
            {metric: (report[metric], intervals.get(metric)) for metric in shown_metrics(len(classes))},
            tuple(_warnings(int(member_N.sum()), len(set(own_groups)), support, classes)),
        ))
    return judged


def shown_metrics(num_classes: int) -> tuple[str, ...]:
    """What is told of a level."""
    return ("auroc", "sensitivity", "specificity") if num_classes == 2 else ("accuracy", "balanced_accuracy", "auroc")


def _warnings(num_samples: int, num_groups: int, support: Sequence[int], classes: Sequence[str]) -> list[str]:
    found = []
    if num_samples < FEW_SAMPLES:
        found.append(f"fewer than {FEW_SAMPLES} samples")
    if num_groups < FEW_GROUPS:
        found.append(f"fewer than {FEW_GROUPS} groups")
    if len(classes) == 2:
        found += [f"fewer than {FEW_OF_A_CLASS} of {short(name, 24)}"
                  for name, count in zip(classes, support, strict=True) if count < FEW_OF_A_CLASS]
    elif rare := sum(count < FEW_OF_A_CLASS for count in support):
        found.append(f"{counted(rare, 'class', 'classes')} with fewer than {FEW_OF_A_CLASS}")
    return found


def _cut(number_N: NDArray[np.float64], bounds: Sequence[float]) -> list[tuple[str, NDArray[np.bool_]]]:
    edges = [-math.inf, *bounds, math.inf]
    levels = []
    for low, high in pairwise(edges):
        name = f"{low:g} to below {high:g}"
        if low == -math.inf:
            name = f"below {high:g}"
        elif high == math.inf:
            name = f"{low:g} and more"
        levels.append((name, (number_N >= low) & (number_N < high)))
    return levels


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
