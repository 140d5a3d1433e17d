"""Whether a format says what the trained model says. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from distrib.bundle import FormatParity
from distrib.decision import Threshold, decide, positive_index, softmax
from distrib.errors import BundleError
from distrib.scoring import Logits

_TIE = 1e-6
"""Two probabilities closer than this are a tie, which rounding may decide either way: about what float32 can hold."""


def compare(name: str, reference_NK: Logits, candidate_NK: Logits, keys: Sequence[str], classes: Sequence[str],
            threshold: Threshold | None, tolerance: float) -> FormatParity:
    """Differences over the samples. Raises BundleError where a probability differs by more than ``tolerance``,
    or the label differs and it is no tie.
    """
    remedy = "raise --tolerance if this is acceptable, or leave the format out with --format"
    if candidate_NK.shape != reference_NK.shape or not np.isfinite(candidate_NK).all():
        raise BundleError(f"{name} gives no finite logits of shape {reference_NK.shape}", "no bundle was written",
                          remedy)
    reference, candidate = softmax(reference_NK), softmax(candidate_NK)
    difference_N = np.abs(reference - candidate).max(axis=1)
    worst = int(difference_N.argmax())
    if difference_N[worst] > tolerance:
        raise BundleError(f"{name} differs from the trained model by {difference_N[worst]:.3g} in a probability of "
                          f"sample {keys[worst]!r}; the tolerance is {tolerance:g}", "no bundle was written", remedy)
    expected_N, found_N = decide(reference, classes, threshold), decide(candidate, classes, threshold)
    ties_N = _margins(reference, classes, threshold) <= _TIE
    wrong_N = (expected_N != found_N) & ~ties_N
    if wrong_N.any():
        first = int(wrong_N.argmax())
        raise BundleError(f"{name} labels {int(wrong_N.sum())} of {len(keys)} samples differently from the trained "
                          f"model, first {keys[first]!r}: {classes[found_N[first]]!r} instead of "
                          f"{classes[expected_N[first]]!r}", "no bundle was written",
                          "leave the format out with --format")
    return FormatParity(
        max_probability_difference=float(difference_N.max()),
        max_logit_difference=float(np.abs(reference_NK - candidate_NK).max()),
        labels_equal=int((expected_N == found_N).sum()),
        ties=int(ties_N.sum()),
    )


def worst_of(first: FormatParity, second: FormatParity) -> FormatParity:
    """One record for two comparisons over the same samples."""
    return FormatParity(
        max_probability_difference=max(first.max_probability_difference, second.max_probability_difference),
        max_logit_difference=max(first.max_logit_difference, second.max_logit_difference),
        labels_equal=min(first.labels_equal, second.labels_equal),
        ties=max(first.ties, second.ties),
    )


def _margins(probabilities_NK: np.ndarray[tuple[int, ...], np.dtype[np.float64]], classes: Sequence[str],
             threshold: Threshold | None) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """How far each sample is from another label."""
    if threshold is not None:
        positive = positive_index(classes, threshold.positive_class)
        return np.abs(probabilities_NK[:, positive] - threshold.value)
    second, first = np.sort(probabilities_NK, axis=1)[:, -2:].T
    return np.asarray(first - second)
