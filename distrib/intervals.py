"""Bootstrap confidence intervals, drawn by group, for the metrics of `distrib.metrics`.

Images of one patient are not independent, so whole groups are drawn with replacement (a cluster
bootstrap; Field and Welsh, "Bootstrapping clustered data", 2007). A resample is a vector of weights, one
a sample, and every metric is computed for many resamples at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distrib.config import EvaluateConfig
from distrib.decision import Threshold, decide, log_softmax, positive_index, softmax
from distrib.metrics import CALIBRATION_BINS, RATE_SLACK, Floats, Labels, brier_terms, calibration_terms

_CHUNK_WEIGHTS = 1 << 21  # weights held at a time: 16 MiB, so that a chunk stays near the cache


def bootstrap_intervals(logits_NK: NDArray[np.floating[Any]], labels_N: Labels, groups: Sequence[str],
                        classes: Sequence[str], config: EvaluateConfig, threshold: Threshold | None = None,
                        *, resamples: int, seed: int = 0) -> dict[str, Any]:
    """95% percentile intervals of the headline metrics, from ``resamples`` draws of the groups.

    {"level", "resamples", "num_groups", "seed", "metrics": {name: {"low", "high", "undefined_resamples"}}}.
    A resample in which a metric is not defined is left out of it and counted; where half or more are,
    low and high are None.
    """
    drawn = bootstrap_draws(logits_NK, labels_N, groups, classes, config, threshold, resamples=resamples, seed=seed)
    return {
        "level": 0.95, "resamples": resamples, "num_groups": len(set(groups)), "seed": seed,
        "metrics": {name: percentile_interval(values_B) for name, values_B in drawn.items()},
    }


def bootstrap_draws(logits_NK: NDArray[np.floating[Any]], labels_N: Labels, groups: Sequence[str],
                    classes: Sequence[str], config: EvaluateConfig, threshold: Threshold | None = None,
                    *, resamples: int, seed: int = 0) -> dict[str, Floats]:
    """The headline metrics of every resample, NaN where not defined: {name: values_B}.

    With equal groups, resamples and seed, row b of two models is of the same samples, so that differences of
    rows are paired.
    """
    drawn: dict[str, list[Floats]] = {}
    log_probabilities_NK, probabilities_NK = log_softmax(logits_NK), softmax(logits_NK)
    predicted_N = decide(probabilities_NK, classes, threshold)
    positive = positive_index(classes, config.positive_class)
    losses_N = -log_probabilities_NK[np.arange(len(labels_N)), labels_N]
    errors_N = brier_terms(probabilities_NK, labels_N, positive)
    bin_N, surplus_N = calibration_terms(probabilities_NK, labels_N)
    surplus_NB = np.where(bin_N[:, None] == np.arange(CALIBRATION_BINS), surplus_N[:, None], 0.0)
    truth_NK = (labels_N[:, None] == np.arange(len(classes))).astype(np.float64)
    correct_N = (predicted_N == labels_N).astype(np.float64)
    judged = range(len(classes)) if positive is None else [positive]
    for weights_BN in resampled(groups, resamples, seed):
        total_B = weights_BN.sum(axis=1)
        recall_BK = _divide(weights_BN @ (truth_NK * correct_N[:, None]), weights_BN @ truth_NK)
        values = {
            "accuracy": weights_BN @ correct_N / total_B,
            "balanced_accuracy": recall_BK.mean(axis=1),
            "loss": weights_BN @ losses_N / total_B,
            "brier": weights_BN @ errors_N / total_B,
            "calibration_error": np.abs(weights_BN @ surplus_NB).sum(axis=1) / total_B,
        }
        curves = [RocCurves(probabilities_NK[:, k], labels_N == k, weights_BN) for k in judged]
        values["auroc"] = np.mean([curve.auroc() for curve in curves], axis=0)
        values["average_precision"] = np.mean([curve.average_precision() for curve in curves], axis=0)
        values["partial_auroc"] = np.mean([curve.partial_auroc(config.tpr_floor) for curve in curves], axis=0)
        if positive is not None:
            values["sensitivity"], values["specificity"] = recall_BK[:, positive], recall_BK[:, 1 - positive]
            values["sensitivity_at_specificity"] = curves[0].sensitivity_at(config.specificity)
            values["specificity_at_sensitivity"] = curves[0].specificity_at(config.sensitivity)
        for name, value_B in values.items():
            drawn.setdefault(name, []).append(value_B)
    return {name: np.concatenate(parts) for name, parts in drawn.items()}


class RocCurves:
    """The ROC curves of one ranking under many weightings. Undefined values are NaN.

    ``scores_N``, ``truth_N``: the ranking; ``weights_BN``: one weighting a row, at least 0. Equal scores
    are one point. Agrees with scikit-learn's ``sample_weight`` (tested).
    """

    def __init__(self, scores_N: Floats, truth_N: NDArray[np.bool_], weights_BN: Floats) -> None:
        order = np.argsort(-scores_N, kind="stable")
        last = np.flatnonzero(np.diff(scores_N[order], append=-np.inf))  # last sample of each distinct score
        ordered_BN = weights_BN[:, order]
        self._hits_BT = _from_zero(np.cumsum(ordered_BN * truth_N[order], axis=1)[:, last])
        self._alarms_BT = _from_zero(np.cumsum(ordered_BN * ~truth_N[order], axis=1)[:, last])
        self._tpr_BT = _divide(self._hits_BT, self._hits_BT[:, -1:])
        self._fpr_BT = _divide(self._alarms_BT, self._alarms_BT[:, -1:])

    def auroc(self) -> Floats:
        """Trapezoidal area, shape [B]."""
        return self.partial_auroc(0.0)

    def partial_auroc(self, tpr_floor: float) -> Floats:
        """As `distrib.metrics.partial_auroc`, shape [B]."""
        above_BT = np.maximum(self._tpr_BT - tpr_floor, 0)
        low, high = above_BT[:, :-1], above_BT[:, 1:]
        rise = np.diff(self._tpr_BT, axis=1)
        # Mean height of the part above the floor, also where the segment crosses it.
        height = np.divide(high**2 - low**2, 2 * rise, out=low.copy(), where=rise > 0)
        result: Floats = (np.diff(self._fpr_BT, axis=1) * height).sum(axis=1)
        return result

    def average_precision(self) -> Floats:
        """Sum over thresholds of precision times the gain in recall, shape [B]."""
        called_BT = self._hits_BT[:, 1:] + self._alarms_BT[:, 1:]
        precision = np.divide(self._hits_BT[:, 1:], called_BT, out=np.zeros_like(called_BT), where=called_BT > 0)
        result: Floats = (np.diff(self._tpr_BT, axis=1) * precision).sum(axis=1)
        return result + 0 * self._fpr_BT[:, -1]  # undefined without negatives, as in the point value

    def sensitivity_at(self, specificity: float) -> Floats:
        """Highest sensitivity where the specificity is at least this, shape [B]."""
        return self._best(self._tpr_BT, 1 - self._fpr_BT >= specificity - RATE_SLACK)

    def specificity_at(self, sensitivity: float) -> Floats:
        """Highest specificity where the sensitivity is at least this, shape [B]."""
        return self._best(1 - self._fpr_BT, self._tpr_BT >= sensitivity - RATE_SLACK)

    def sensitivities(self, fpr_G: Floats) -> Floats:
        """Highest sensitivity with at most each of these false-positive rates, shape [B, G]."""
        place_BG = np.stack([np.searchsorted(row, fpr_G + RATE_SLACK, side="right") - 1 for row in self._fpr_BT])
        result: Floats = np.take_along_axis(self._tpr_BT, np.maximum(place_BG, 0), axis=1)
        return result + 0 * (self._tpr_BT[:, -1:] + self._fpr_BT[:, -1:])

    def precisions(self, recall_G: Floats) -> Floats:
        """Precision at the highest threshold that reaches each of these recalls (above 0), shape [B, G]."""
        last = self._tpr_BT.shape[1] - 1
        place_BG = np.stack([np.searchsorted(row, recall_G - RATE_SLACK) for row in self._tpr_BT])
        place_BG = np.clip(place_BG, 1, last)
        hits_BG = np.take_along_axis(self._hits_BT, place_BG, axis=1)
        result = _divide(hits_BG, hits_BG + np.take_along_axis(self._alarms_BT, place_BG, axis=1))
        return result + 0 * (self._tpr_BT[:, -1:] + self._fpr_BT[:, -1:])

    def _best(self, rates_BT: Floats, allowed_BT: NDArray[np.bool_]) -> Floats:
        result: Floats = np.where(allowed_BT, rates_BT, 0).max(axis=1)
        return result + 0 * (self._tpr_BT[:, -1] + self._fpr_BT[:, -1])


def resampled(groups: Sequence[str], resamples: int, seed: int = 0) -> Iterator[Floats]:
    """Chunks of weights_BN, ``resamples`` rows in all: how often each sample's group was drawn."""
    unique_groups, group_N = np.unique(np.asarray(groups), return_inverse=True)
    num_groups = len(unique_groups)
    random = np.random.default_rng(seed)
    rows = max(1, _CHUNK_WEIGHTS // len(group_N))
    for begin in range(0, resamples, rows):
        count = min(rows, resamples - begin)
        counts = [np.bincount(random.integers(num_groups, size=num_groups), minlength=num_groups) for _ in range(count)]
        yield np.stack(counts).astype(np.float64)[:, group_N]


def percentile_interval(values_B: Floats) -> dict[str, Any]:
    """{"low", "high", "undefined_resamples"}: the middle 95% of what is defined."""
    defined = values_B[~np.isnan(values_B)]
    left_out = len(values_B) - len(defined)
    if 2 * left_out >= len(values_B):
        return {"low": None, "high": None, "undefined_resamples": left_out}
    low, high = np.percentile(defined, (2.5, 97.5))
    return {"low": float(low), "high": float(high), "undefined_resamples": left_out}


def _from_zero(values_BT: Floats) -> Floats:
    return np.concatenate([np.zeros((len(values_BT), 1)), values_BT], axis=1)


def _divide(part: Floats, whole: Floats) -> Floats:
    """part / whole, NaN where whole is 0."""
    whole = np.broadcast_to(whole, part.shape)
    result: Floats = np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)
    return result
