"""Fewer lanes for slow ranks: pure functions of how long a lane takes each rank. Results do not depend on them, since
lanes are summed exactly."""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heapify, heapreplace

WORTH = 0.9
"""Lanes move if a step is then expected to take at most this part of its time: a move costs about a step."""


def share_lanes(work_s: Sequence[float], lanes: int) -> list[int]:
    """How many lanes each rank carries, one at least, so that the slowest is done as early as can be.

    ``work_s``: seconds a lane takes each rank. Each lane goes to who is then done first, which for equal lanes is
    optimal (list scheduling of equal jobs on uniform machines).
    """
    counts = [1] * len(work_s)
    done = [(2 * seconds, rank) for rank, seconds in enumerate(work_s)]
    heapify(done)
    for _ in range(lanes - len(work_s)):
        at, rank = done[0]
        counts[rank] += 1
        heapreplace(done, (at + work_s[rank], rank))
    return counts


def better_shares(counts: Sequence[int], work_s: Sequence[float]) -> list[int] | None:
    """Other shares of the same lanes, if they are worth a move."""
    wanted = share_lanes(work_s, sum(counts))
    return wanted if _step_s(wanted, work_s) <= WORTH * _step_s(counts, work_s) else None


def lanes_of(rank: int, counts: Sequence[int]) -> range:
    """The lanes that a rank carries, where ranks carry so many each."""
    first = sum(counts[:rank])
    return range(first, first + counts[rank])


def _step_s(counts: Sequence[int], work_s: Sequence[float]) -> float:
    return max(count * seconds for count, seconds in zip(counts, work_s, strict=True))
