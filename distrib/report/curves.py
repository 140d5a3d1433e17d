"""What the report draws: ROC and precision-recall curves and calibration, with bootstrap bands drawn by group. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn import metrics as sk

from distrib.intervals import RocCurves, percentile_interval, resampled
from distrib.metrics import CALIBRATION_BINS, Floats, Labels, calibration_terms
from distrib.report.svg import Bin, Point

GRID = np.linspace(0.0, 1.0, 51)
"""False-positive rates and recalls at which the bands are known."""
_MOST_POINTS = 200

Band = tuple[tuple[float, float, float], ...]


@dataclass(frozen=True)
class Curves:
    """Of one class against the rest."""

    roc: tuple[Point, ...]
    """(false-positive rate, sensitivity)."""
    roc_band: Band
    precision: tuple[Point, ...]
    """(recall, precision)."""
    precision_band: Band
    auroc: float
    auroc_interval: dict[str, Any] | None
    average_precision: float
    average_precision_interval: dict[str, Any] | None


def class_curves(probabilities_NK: Floats, labels_N: Labels, groups: Sequence[str], wanted: Sequence[int],
                 resamples: int, seed: int = 0) -> dict[int, Curves | None]:
    """Curves of the wanted classes, each against the rest; None where only one of both has samples.

    Bands are the middle 95% of the resamples at each point of `GRID` (pointwise, not of the curve as a whole); empty
    without resamples.
    """
    defined = [k for k in wanted if 0 < int((labels_N == k).sum()) < len(labels_N)]
    rates: dict[int, list[Floats]] = {k: [] for k in defined}
    precisions: dict[int, list[Floats]] = {k: [] for k in defined}
    areas: dict[int, list[Floats]] = {k: [] for k in defined}
    for weights_BN in resampled(groups, resamples, seed) if resamples else ():
        for k in defined:
            drawn = RocCurves(probabilities_NK[:, k], labels_N == k, weights_BN)
            rates[k].append(drawn.sensitivities(GRID))
            precisions[k].append(drawn.precisions(GRID[1:]))
            areas[k].append(np.stack([drawn.auroc(), drawn.average_precision()]))
    result: dict[int, Curves | None] = dict.fromkeys(wanted)
    for k in defined:
        truth_N, scores_N = labels_N == k, probabilities_NK[:, k]
        fpr, tpr, _ = sk.roc_curve(truth_N, scores_N)
        precision, recall, _ = sk.precision_recall_curve(truth_N, scores_N, drop_intermediate=True)
        # scikit-learn's last point, recall 0 with precision 1, is a convention and no threshold's.
        intervals: list[dict[str, Any] | None] = [None, None]
        if areas[k]:
            intervals = [percentile_interval(values_B) for values_B in np.concatenate(areas[k], axis=1)]
        result[k] = Curves(
            _thinned(fpr, tpr), _band(GRID, rates[k]), _thinned(recall[:-1][::-1], precision[:-1][::-1]),
            _band(GRID[1:], precisions[k]), float(sk.roc_auc_score(truth_N, scores_N)), intervals[0],
            float(sk.average_precision_score(truth_N, scores_N)), intervals[1])
    return result


def calibration_bins(probabilities_NK: Floats, labels_N: Labels, groups: Sequence[str], resamples: int,
                     seed: int = 0) -> list[Bin]:
    """The bins of `distrib.metrics.calibration_error`, each with its accuracy's interval; empty bins have count 0."""
    bin_N, _ = calibration_terms(probabilities_NK, labels_N)
    confidence_N = probabilities_NK.max(axis=1)
    correct_N = (probabilities_NK.argmax(axis=1) == labels_N).astype(np.float64)
    member_NB = (bin_N[:, None] == np.arange(CALIBRATION_BINS)).astype(np.float64)
    count_B = member_NB.sum(axis=0)
    drawn = []
    for weights in resampled(groups, resamples, seed) if resamples else ():
        total = weights @ member_NB
        drawn.append(np.divide(weights @ (member_NB * correct_N[:, None]), total, out=np.full(total.shape, np.nan),
                               where=total > 0))
    bins = []
    for b in range(CALIBRATION_BINS):
        count = max(count_B[b], 1.0)
        interval = None
        if drawn and count_B[b]:
            values = np.concatenate([part[:, b] for part in drawn])
            low, high = np.nanpercentile(values, (2.5, 97.5)) if not np.isnan(values).all() else (np.nan, np.nan)
            interval = (float(low), float(high)) if np.isfinite(low) else None
        bins.append(Bin(b / CALIBRATION_BINS, (b + 1) / CALIBRATION_BINS, int(count_B[b]),
                        float(confidence_N @ member_NB[:, b] / count), float(correct_N @ member_NB[:, b] / count),
                        interval))
    return bins


def _band(at_G: Floats, drawn: Sequence[Floats]) -> Band:
    if not drawn:
        return ()
    values_BG = np.concatenate(drawn)
    values_BG = values_BG[~np.isnan(values_BG).any(axis=1)]  # resamples without either class
    if 2 * len(values_BG) <= sum(map(len, drawn)):
        return ()
    low_G, high_G = np.percentile(values_BG, (2.5, 97.5), axis=0)
    return tuple(zip(at_G.tolist(), low_G.tolist(), high_G.tolist(), strict=True))


def _thinned(x_T: NDArray[np.floating], y_T: NDArray[np.floating]) -> tuple[Point, ...]:
    """At most `_MOST_POINTS` points, at equal distances along the curve, both ends among them."""
    x_T, y_T = np.asarray(x_T, dtype=np.float64), np.asarray(y_T, dtype=np.float64)
    if len(x_T) > _MOST_POINTS:
        length_T = np.concatenate([[0.0], np.cumsum(np.hypot(np.diff(x_T), np.diff(y_T)))])
        wanted = np.linspace(0, length_T[-1], _MOST_POINTS)
        chosen = np.unique(np.append(np.searchsorted(length_T, wanted).clip(0, len(x_T) - 1), [0, len(x_T) - 1]))
        x_T, y_T = x_T[chosen], y_T[chosen]
    return tuple(zip(x_T.tolist(), y_T.tolist(), strict=True))
