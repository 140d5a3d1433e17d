"""What the benchmark scripts share: paired rounds, and ratios that hold when the machine's speed drifts."""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence


def paired_rounds(works: Mapping[str, Callable[[], object]], rounds: int,
                  clock: Callable[[], float] = time.perf_counter,
                  before: Callable[[], object] | None = None) -> dict[str, list[float]]:
    """Seconds of every work in every round: A B, B A, A B, ... after one round that does not count.

    ``clock``: the wall's by default. With time.process_time, the CPU seconds of all threads of this process:
    on a core that others disturb, the fairer one for work that is never waiting.
    ``before``: called before every work, outside of its time.
    """
    names = list(works)
    taken: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds + 1):
        for name in names if number % 2 else reversed(names):
            if before is not None:
                before()
            start = clock()
            works[name]()
            if number:
                taken[name].append(clock() - start)
    return taken


def ratio(numerator: Sequence[float], denominator: Sequence[float]) -> tuple[float, float, float]:
    """(median, smallest, largest) of the ratios pair by pair."""
    ratios = [a / b for a, b in zip(numerator, denominator, strict=True)]
    return statistics.median(ratios), min(ratios), max(ratios)


def one_core() -> int:
    """Keep this process, and all that it starts, on one core; returns its number."""
    core = max(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {core})
    return core


def show(text: str) -> None:
    """A line of the report, on stdout at once."""
    print(text, flush=True)


def note(text: str) -> None:
    """A line about what is going on, on stderr."""
    print(text, file=sys.stderr, flush=True)
