"""One run or bundle as the report knows it: everything that is computed, nothing of how it looks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distrib.config import EvaluateConfig
from distrib.decision import decide, positive_index, softmax
from distrib.evaluate import Scored, judge
from distrib.intervals import bootstrap_draws, percentile_interval
from distrib.metrics import Floats
from distrib.report.curves import Curves, calibration_bins, class_curves
from distrib.report.facts import Facts, read_facts
from distrib.report.history import History, read_history
from distrib.report.mistakes import Mistake, find_mistakes
from distrib.report.subgroups import Level, judge_levels
from distrib.report.svg import Bin
from distrib.report.thresholds import Operating, asked_for, operating_points
from distrib.rundir import RunDir

Tell = Callable[[str], None]
Levels = Mapping[str, Sequence[tuple[str, NDArray[np.bool_]]]]
"""Field -> (name, member_N) of its levels."""

LETTERS = "ABCDE"
MOST_CLASSES = 12
"""Classes with curves and thresholds; of more, those with the most samples."""
_RATES = (0.8, 0.9, 0.95, 0.99)


@dataclass(frozen=True)
class Judged:
    letter: str
    target: Path
    report: dict[str, Any]
    """As `evaluate --json` prints it."""
    draws: dict[str, Floats]
    """Metrics of every resample; those of two targets are paired."""
    curves: dict[int, Curves | None]
    """By class."""
    bins: list[Bin]
    points: dict[int, list[Operating]]
    """By class."""
    subgroups: dict[str, list[Level]]
    mistakes: list[Mistake]
    num_wrong: int
    history: History | None
    """None of a bundle."""
    facts: Facts

    @property
    def positive_class(self) -> str | None:
        """The class to detect, of two."""
        name: str | None = self.report.get("positive_class")
        return name

    @property
    def intervals(self) -> dict[str, Any]:
        """By metric; empty without resamples."""
        metrics: dict[str, Any] = (self.report["intervals"] or {}).get("metrics", {})
        return metrics


def shown_classes(one: Scored, config: EvaluateConfig) -> list[int]:
    """Those with curves and thresholds: the positive class of two, else at most `MOST_CLASSES`."""
    positive = positive_index(one.subject.classes, config.positive_class)
    if positive is not None:
        return [positive]
    counts = np.bincount(one.samples.labels, minlength=len(one.subject.classes))
    return sorted(np.argsort(-counts, kind="stable")[:MOST_CLASSES].tolist())


def judge_target(letter: str, one: Scored, config: EvaluateConfig, levels: Levels, num_mistakes: int, resamples: int,
                 tell: Tell) -> Judged:
    """Within the block of `distrib.evaluate.scored`. Raises any DistribError."""
    subject, labels_N, groups = one.subject, one.samples.labels, one.samples.groups
    classes, threshold = subject.classes, subject.threshold
    report, probabilities_NK = judge(one, config), softmax(one.logits_NK)
    draws = bootstrap_draws(one.logits_NK, labels_N, groups, classes, config, threshold,
                            resamples=resamples) if resamples else {}
    report["intervals"] = {
        "level": 0.95, "resamples": resamples, "num_groups": len(set(groups)), "seed": 0,
        "metrics": {name: percentile_interval(values_B) for name, values_B in draws.items()},
    } if draws else None
    shown = shown_classes(one, config)
    history = read_history(RunDir(one.target)) if subject.identity["kind"] == "run" else None
    return Judged(
        letter, one.target, report, draws, class_curves(probabilities_NK, labels_N, groups, shown, resamples),
        calibration_bins(probabilities_NK, labels_N, groups, resamples),
        {k: _points(one, config, probabilities_NK, k, resamples) for k in shown},
        {field: judge_levels(parts, one.logits_NK, labels_N, groups, classes, config, threshold, resamples)
         for field, parts in levels.items()},
        find_mistakes(one, num_mistakes, tell),
        int((decide(probabilities_NK, classes, threshold) != labels_N).sum()), history,
        read_facts(one, history),
    )


def difference(one: Judged, first: Judged, metric: str) -> tuple[float, dict[str, Any] | None] | None:
    """(value less that of the first, interval of the paired difference); None where one of both is not defined."""
    mine, theirs = one.report[metric], first.report[metric]
    if mine is None or theirs is None:
        return None
    interval = percentile_interval(one.draws[metric] - first.draws[metric]) if one.draws and first.draws else None
    return mine - theirs, interval


def _points(one: Scored, config: EvaluateConfig, probabilities_NK: Floats, k: int, resamples: int) -> list[Operating]:
    subject, truth_N, scores_N = one.subject, one.samples.labels == k, probabilities_NK[:, k]
    called = []
    if subject.threshold is not None:
        predicted_N = decide(probabilities_NK, subject.classes, subject.threshold)
        called.append((f"chosen on {subject.threshold.split}, decides the label",
                       subject.threshold.value if subject.classes[k] == subject.threshold.positive_class else None,
                       predicted_N == k))
    called.append(("largest probability", None, probabilities_NK.argmax(axis=1) == k))
    called += asked_for(scores_N, truth_N, sorted({*_RATES, config.sensitivity}),
                        sorted({*_RATES, config.specificity}))
    return operating_points(truth_N, called, one.samples.groups, resamples)
