"""Which ranks are slow: pure functions of how long each rank's own work took, look after look.

A rank's work is what it does by itself, waiting for its data and computing, in seconds a lane and step: a rank is not
slow for carrying more lanes, nor for waiting for a slow one.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

RECENT = 3
"""Looks whose median counts, so that one bad look, whatever it was, makes nobody slow."""


@dataclass(frozen=True)
class Standing:
    """One rank after a look."""

    work_s: float
    """Median over the recent looks, seconds a lane and step."""
    against_others: float | None
    """That over the median of the other ranks'; None alone."""
    against_past: float | None
    """That over the best that the rank itself showed before, as a median too; None until it has such a past."""
    slow_since: int | None
    """First step of the look at which it was slow; None: it is not."""

    @property
    def score(self) -> float:
        """The larger of both."""
        return max(self.against_others or 0.0, self.against_past or 0.0)

    @property
    def is_against_others(self) -> bool:
        """Whether the score is that against the others."""
        return (self.against_others or 0.0) >= (self.against_past or 0.0)


class Scores:
    """Scores ranks, look by look. Slow is a rank whose score reached ``slow_factor`` over `RECENT` looks, until it
    falls below the root of that: a rank at the threshold is not named again and again."""

    def __init__(self, slow_factor: float) -> None:
        self._slow_factor = slow_factor
        self._looks: deque[tuple[int, list[float]]] = deque(maxlen=2 * RECENT)
        self._best: list[float] = []
        self._slow_since: dict[int, int] = {}

    def take(self, first_step: int, work_s: Sequence[float]) -> list[Standing]:
        """``work_s`` of every rank over the steps from ``first_step`` on; how all ranks stand then."""
        self._looks.append((first_step, list(work_s)))
        looks = list(self._looks)
        now = _medians([look for _, look in looks[-RECENT:]])
        if len(looks) == 2 * RECENT:
            before = _medians([look for _, look in looks[:RECENT]])
            self._best = [min(pair) for pair in zip(self._best or before, before, strict=True)]
        return [self._standing(rank, now) for rank in range(len(now))]

    def _standing(self, rank: int, now: list[float]) -> Standing:
        others = now[:rank] + now[rank + 1:]
        usual_s = {"others": median(others) if others else math.nan,
                   "past": self._best[rank] if self._best else math.nan}
        ratios = {name: now[rank] / usual if usual > 0 else None for name, usual in usual_s.items()}
        standing = Standing(now[rank], ratios["others"], ratios["past"], None)
        bound = self._slow_factor if rank not in self._slow_since else math.sqrt(self._slow_factor)
        if len(self._looks) < RECENT or standing.score < bound:
            self._slow_since.pop(rank, None)
            return standing
        if rank not in self._slow_since:
            usual = usual_s["others" if standing.is_against_others else "past"]
            self._slow_since[rank] = self._begin(rank, self._slow_factor * usual)
        return Standing(now[rank], ratios["others"], ratios["past"], self._slow_since[rank])

    def _begin(self, rank: int, bound_s: float) -> int:
        """First step of the earliest recent look at which the rank's work took ``bound_s`` or more."""
        return next(step for step, look in list(self._looks)[-RECENT:] if look[rank] >= bound_s)


def periods_until_look(period_s: Sequence[float], every_s: float) -> int:
    """Periods that take about ``every_s``, by what a period took on each rank: equal on all ranks if these are."""
    return max(1, round(every_s / max(median(period_s), 1e-6)))


def _medians(looks: Sequence[Sequence[float]]) -> list[float]:
    """Of each rank over looks."""
    return [median(of_rank) for of_rank in zip(*looks, strict=True)]
