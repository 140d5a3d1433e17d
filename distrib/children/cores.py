"""Dividing this process's processors among trials."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

CPUS = Path("/sys/devices/system/cpu")


def divide(cores: Sequence[Sequence[int]], shares: int) -> list[list[int]]:
    """Hardware threads of each share: whole cores, neighbours together, as even as can be. Pure.

    With fewer cores than shares, several shares have the same core.
    """
    if shares >= len(cores):
        return [list(cores[number % len(cores)]) for number in range(shares)]
    bounds = [number * len(cores) // shares for number in range(shares + 1)]
    return [[cpu for core in cores[start:end] for cpu in core] for start, end in pairwise(bounds)]


def usable_cores() -> list[list[int]]:
    """Hardware threads that this process may run on, by physical core; neighbours in a socket follow each other."""
    cores: dict[tuple[int, int], list[int]] = {}
    for cpu in sorted(os.sched_getaffinity(0)):
        place = (-1, cpu)  # where the kernel does not say: a core of its own
        with contextlib.suppress(OSError, ValueError):
            topology = CPUS / f"cpu{cpu}" / "topology"
            place = (int((topology / "physical_package_id").read_text()), int((topology / "core_id").read_text()))
        cores.setdefault(place, []).append(cpu)
    return [cores[place] for place in sorted(cores)]
