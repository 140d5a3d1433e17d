"""Whether a reduced format is good enough. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from distrib.bundle import FormatGate
from distrib.config import EvaluateConfig
from distrib.decision import Threshold, decide, softmax
from distrib.errors import BundleError, counted
from distrib.intervals import bootstrap_draws, percentile_interval
from distrib.metrics import LOWER_IS_BETTER, RATE_SLACK, Labels, goodness, validate
from distrib.scoring import Logits

RESAMPLES = 1000
"""Of the interval of a drop."""


def metric_of(logits_NK: Logits, labels_N: Labels, classes: Sequence[str], config: EvaluateConfig) -> float:
    """``config.metric`` as training's validation computes it, as a number of which more is better.

    Raises DataError if it is not defined.
    """
    return goodness(validate(logits_NK, labels_N, classes, config), config.metric)


def judge(name: str, exact_NK: Logits, reduced_NK: Logits, labels_N: Labels, groups: Sequence[str],
          classes: Sequence[str], config: EvaluateConfig, threshold: Threshold | None, max_drop: float) -> FormatGate:
    """Raises BundleError where the metric is worse than that of the exact logits by more than ``max_drop``."""
    exact, reduced = (metric_of(logits_NK, labels_N, classes, config) for logits_NK in (exact_NK, reduced_NK))
    expected_N, found_N = (decide(softmax(logits_NK), classes, threshold) for logits_NK in (exact_NK, reduced_NK))
    labels_equal = int((expected_N == found_N).sum())
    if exact - reduced > max_drop + RATE_SLACK:
        raise BundleError(
            f"{name} changes {config.metric} on {len(labels_N)} validation samples from {abs(exact):.6g} to "
            f"{abs(reduced):.6g}, worse by {exact - reduced:.3g}; the most accepted is {max_drop:g} "
            f"({counted(len(labels_N) - labels_equal, 'label differs', 'labels differ')})", "no bundle was written",
            "raise --max-drop if this is acceptable, calibrate with more images (--calibration), or leave the format "
            "out with --format")
    low, high = drop_interval(exact - reduced, exact_NK, reduced_NK, labels_N, groups, classes, config)
    return FormatGate(value=abs(reduced), drop=exact - reduced, drop_low=low, drop_high=high,
                      labels_equal=labels_equal, label_agreement=labels_equal / len(labels_N))


def drop_interval(drop: float, exact_NK: Logits, reduced_NK: Logits, labels_N: Labels, groups: Sequence[str],
                  classes: Sequence[str], config: EvaluateConfig) -> tuple[float, float] | tuple[None, None]:
    """95% interval of the drop: both answered the same samples, of which whole groups are drawn for both alike.

    Where few answers differ, draws say too little: none of 20 that differs does not show that none ever will. So the
    interval of all metrics but the loss reaches at least `two_groups` to either side. (None, None) where the metric
    is not defined in half of the draws.
    """
    sign = -1 if config.metric in LOWER_IS_BETTER else 1
    exact_B, reduced_B = (bootstrap_draws(logits_NK, labels_N, groups, classes, config,
                                          resamples=RESAMPLES)[config.metric] for logits_NK in (exact_NK, reduced_NK))
    drawn = percentile_interval(sign * (exact_B - reduced_B))
    if drawn["low"] is None:
        return None, None
    reach = 0.0 if config.metric == "loss" else two_groups(labels_N, groups, len(classes), config.metric)
    return min(drawn["low"], drop - reach), max(drawn["high"], drop + reach)


def two_groups(labels_N: Labels, groups: Sequence[str], num_classes: int, metric: str) -> float:
    """By how much the metric changes if the answers of two groups do (a group is an image where none were given), at
    most 1: two of all groups for the accuracy, for the others two of the rarest class's, in the mean over the classes.

    Two of n is where the 95% interval of Agresti and Min for paired shares ends if none of n differs, 1.96 / (n + 2):
    "Simple improved confidence intervals for comparing matched proportions", 2005.
    """
    if metric == "accuracy":
        return min(1.0, 2 / len(set(groups)))
    of_class: dict[int, set[str]] = defaultdict(set)
    for label, group in zip(labels_N.tolist(), groups, strict=True):
        of_class[label].add(group)
    judged = num_classes if num_classes > 2 or metric == "balanced_accuracy" else 1
    return min(1.0, 2 / min(map(len, of_class.values()))) / judged


def chance_lines(name: str, gate: FormatGate, num_samples: int, max_drop: float) -> list[str]:
    """What so many samples can not tell, for people: the interval, and a warning where it reaches beyond the most
    that is accepted.
    """
    images = f"{num_samples} val images"
    if gate.drop_low is None or gate.drop_high is None:
        return [f"warning: {images} give the drop of {name} no interval: it may be chance; a larger validation split "
                "tells more"]
    told = [f"{name}: 95% interval of the drop {gate.drop_low:+.2g} to {gate.drop_high:+.2g}, from {images}"]
    if gate.drop_high > max_drop + RATE_SLACK:
        told.append(f"warning: {images} can not show that {name} is worse by no more than --max-drop {max_drop:g}: a "
                    f"drop of {gate.drop_high:.2g} could be there unseen; a larger validation split tells more")
    return told
