"""What a decision threshold means: of one class against the rest, who is found and who is flagged. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distrib.intervals import percentile_interval, resampled
from distrib.metrics import RATE_SLACK, Floats

Truth = NDArray[np.bool_]


@dataclass(frozen=True)
class Operating:
    """One threshold: flagged is what has at least this probability."""

    why: str
    value: float | None
    """None: the class of the largest probability is flagged, or nothing reaches it."""
    hits: int
    misses: int
    alarms: int
    passed: int
    """Flagged and not, of the class; flagged and not, of the rest."""
    sensitivity_interval: dict[str, Any] | None = None
    specificity_interval: dict[str, Any] | None = None

    @property
    def sensitivity(self) -> float | None:
        return _share(self.hits, self.misses)

    @property
    def specificity(self) -> float | None:
        return _share(self.passed, self.alarms)

    @property
    def ppv(self) -> float | None:
        """Part of the flagged that are of the class, at this split's prevalence."""
        return _share(self.hits, self.alarms)

    @property
    def npv(self) -> float | None:
        """Part of the others that are not, at this split's prevalence."""
        return _share(self.passed, self.misses)

    @property
    def flagged_per_1000(self) -> float:
        total = self.hits + self.misses + self.alarms + self.passed
        return 1000 * (self.hits + self.alarms) / total


def for_sensitivity(scores_N: Floats, truth_N: Truth, wanted: float) -> float:
    """The highest of the scores at which the sensitivity is at least this; the class must have samples."""
    ordered = np.sort(scores_N[truth_N])[::-1]
    needed = int(np.ceil((wanted - RATE_SLACK) * len(ordered)))
    return float(ordered[max(needed, 1) - 1])


def for_specificity(scores_N: Floats, truth_N: Truth, wanted: float) -> float | None:
    """The lowest of the scores at which the specificity is at least this; None where none of them is high enough."""
    others, values = np.sort(scores_N[~truth_N]), np.unique(scores_N)
    enough = np.flatnonzero(np.searchsorted(others, values) >= (wanted - RATE_SLACK) * len(others))
    return float(values[enough[0]]) if len(enough) else None


def operating_points(truth_N: Truth, called: Sequence[tuple[str, float | None, Truth]],
                     groups: Sequence[str], resamples: int, seed: int = 0) -> list[Operating]:
    """(why, threshold, who is flagged) with counts and, where there are resamples, intervals drawn by group."""
    drawn: list[list[Floats]] = [[] for _ in called]
    for weights_BN in resampled(groups, resamples, seed) if resamples else ():
        of_class, of_rest = weights_BN @ truth_N, weights_BN @ ~truth_N
        for number, (_, _, called_N) in enumerate(called):
            parts = [np.divide(weights_BN @ hit_N, whole, out=np.full(len(whole), np.nan), where=whole > 0)
                     for hit_N, whole in ((called_N & truth_N, of_class), (~called_N & ~truth_N, of_rest))]
            drawn[number].append(np.stack(parts))
    points = []
    for (why, value, called_N), rates in zip(called, drawn, strict=True):
        intervals: list[dict[str, Any] | None] = [None, None]
        if rates:
            intervals = [percentile_interval(values_B) for values_B in np.concatenate(rates, axis=1)]
        points.append(Operating(why, value, int((called_N & truth_N).sum()), int((~called_N & truth_N).sum()),
                                int((called_N & ~truth_N).sum()), int((~called_N & ~truth_N).sum()), *intervals))
    return points


def asked_for(scores_N: Floats, truth_N: Truth, sensitivities: Sequence[float],
              specificities: Sequence[float]) -> list[tuple[str, float | None, Truth]]:
    """Thresholds of this split for these rates, best first in the other rate; none where a class has no sample."""
    if not truth_N.any() or truth_N.all():
        return []
    called: list[tuple[str, float | None, Truth]] = []
    for wanted in sensitivities:
        value = for_sensitivity(scores_N, truth_N, wanted)
        called.append((f"sensitivity at least {wanted:g}", value, scores_N >= value))
    for wanted in specificities:
        at = for_specificity(scores_N, truth_N, wanted)
        called.append((f"specificity at least {wanted:g}", at,
                       scores_N >= at if at is not None else np.zeros(len(scores_N), dtype=np.bool_)))
    return called


def _share(part: int, rest: int) -> float | None:
    return part / (part + rest) if part + rest else None
