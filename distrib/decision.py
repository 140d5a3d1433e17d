"""From logits to a label: probabilities, the decision threshold, and the one rule that applies both.

`evaluate` and `predict` call the same functions, so that an image has one label. Pure; numpy only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from distrib.documents import Section
from distrib.errors import ConfigError

Fraction = Annotated[float, Field(ge=0, le=1)]


class Threshold(Section):
    """With two classes: the positive class is the label iff its probability is at least ``value``."""

    value: Fraction
    positive_class: str
    chosen_by: Literal["youden_j"] = "youden_j"
    split: str = "val"
    """The split that it was chosen on; never the one that is reported."""
    sensitivity: Fraction
    specificity: Fraction
    """Both on that split, at this threshold."""
    num_samples: Annotated[int, Field(ge=1)]


def log_softmax(logits_NK: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Log-probabilities in float64. A row's result does not depend on the other rows, to the last bit."""
    shifted = logits_NK.astype(np.float64) - logits_NK.max(axis=1, keepdims=True)
    result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return result


def softmax(logits_NK: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Probabilities in float64. A row's result does not depend on the other rows, to the last bit."""
    powers = np.exp(logits_NK.astype(np.float64) - logits_NK.max(axis=1, keepdims=True))
    result: NDArray[np.float64] = powers / powers.sum(axis=1, keepdims=True)
    return result


def positive_index(classes: Sequence[str], positive_class: str | None) -> int | None:
    """The class to detect: with two classes the named one or else the second; with more, None.

    Raises ConfigError for a name that is no class, or any name where there are more than two classes.
    """
    if positive_class is not None and (positive_class not in classes or len(classes) != 2):
        why = f"the classes are {', '.join(classes)}"
        raise ConfigError(f"evaluate.positive_class = {positive_class!r}, but {why}", "nothing was judged",
                          "name one of them" if len(classes) == 2 else "leave it out: it is for two classes only")
    if len(classes) != 2:
        return None
    return 1 if positive_class is None else list(classes).index(positive_class)


def decide(probabilities_NK: NDArray[np.float64], classes: Sequence[str],
           threshold: Threshold | None) -> NDArray[np.int64]:
    """The label of each row.

    With a threshold: the positive class iff its probability is at least that, else the other one.
    Without: the class of the largest probability, of equal ones the first.
    """
    if threshold is None:
        largest_N: NDArray[np.int64] = probabilities_NK.argmax(axis=1).astype(np.int64)
        return largest_N
    positive = positive_index(classes, threshold.positive_class)
    assert positive is not None
    return np.where(probabilities_NK[:, positive] >= threshold.value, positive, 1 - positive).astype(np.int64)


def decision_rule(threshold: Threshold | None) -> str:
    """The rule that `decide` applies, in words."""
    if threshold is None:
        return "the class of the largest probability"
    return f"{threshold.positive_class!r} iff its probability is at least {threshold.value:.6g}"


def choose_threshold(probabilities_NK: NDArray[np.float64], labels_N: NDArray[np.int64], classes: Sequence[str],
                     positive_class: str | None = None, split: str = "val") -> Threshold | None:
    """The threshold of largest J = sensitivity + specificity - 1 (Youden, "Index for rating diagnostic tests", 1950).

    Of thresholds with equal J the most sensitive is taken. The value lies halfway between the lowest
    probability above it and the highest below it, so that rounding in another runtime does not turn a
    label over. None with other than two classes, or where one of the two has no sample.
    """
    positive = positive_index(classes, positive_class)
    if positive is None:
        return None
    truth_N = labels_N == positive
    num_positive, num_negative = int(truth_N.sum()), int((~truth_N).sum())
    if not num_positive or not num_negative:
        return None
    values, place = np.unique(probabilities_NK[:, positive], return_inverse=True)
    positives = np.bincount(place, truth_N, len(values))
    totals = np.bincount(place, minlength=len(values))
    # Called positive when the threshold is values[i]: all from i up.
    hits = positives[::-1].cumsum()[::-1]
    false_alarms = (totals - positives)[::-1].cumsum()[::-1]
    # Compared as integers, so that equal J are equal: J * P * N.
    gain = np.rint(hits * num_negative - false_alarms * num_positive).astype(np.int64)
    best = int(gain.argmax())  # the first of equal ones: the lowest, most sensitive
    upper, lower = float(values[best]), float(values[best - 1]) if best else 0.0
    middle = (upper + lower) / 2
    return Threshold(
        value=middle if middle > lower or not best else upper,
        positive_class=classes[positive],
        split=split,
        sensitivity=float(hits[best] / num_positive),
        specificity=float(1 - false_alarms[best] / num_negative),
        num_samples=len(labels_N),
    )
