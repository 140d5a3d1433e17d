"""Whether a reduced format is good enough. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from distrib.bundle import FormatGate
from distrib.config import EvaluateConfig
from distrib.decision import Threshold, decide, softmax
from distrib.errors import BundleError
from distrib.metrics import RATE_SLACK, Labels, goodness, validate
from distrib.scoring import Logits


def metric_of(logits_NK: Logits, labels_N: Labels, classes: Sequence[str], config: EvaluateConfig) -> float:
    """``config.metric`` as training's validation computes it, as a number of which more is better.

    Raises DataError if it is not defined.
    """
    return goodness(validate(logits_NK, labels_N, classes, config), config.metric)


def judge(name: str, exact_NK: Logits, reduced_NK: Logits, labels_N: Labels, classes: Sequence[str],
          config: EvaluateConfig, threshold: Threshold | None, max_drop: float) -> FormatGate:
    """Raises BundleError where the metric is worse than that of the exact logits by more than ``max_drop``."""
    exact, reduced = (metric_of(logits_NK, labels_N, classes, config) for logits_NK in (exact_NK, reduced_NK))
    expected_N, found_N = (decide(softmax(logits_NK), classes, threshold) for logits_NK in (exact_NK, reduced_NK))
    labels_equal = int((expected_N == found_N).sum())
    if exact - reduced > max_drop + RATE_SLACK:
        raise BundleError(
            f"{name} changes {config.metric} on {len(labels_N)} validation samples from {abs(exact):.6g} to "
            f"{abs(reduced):.6g}, worse by {exact - reduced:.3g}; the most accepted is {max_drop:g} "
            f"({len(labels_N) - labels_equal} labels differ)", "no bundle was written",
            "raise --max-drop if this is acceptable, calibrate with more images (--calibration), or leave the format "
            "out with --format")
    return FormatGate(value=abs(reduced), drop=exact - reduced, labels_equal=labels_equal,
                      label_agreement=labels_equal / len(labels_N))
