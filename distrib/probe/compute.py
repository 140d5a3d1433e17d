"""How fast this node computes and reads memory, on the cores that the launcher gave to this rank.

Each figure is the best of a few windows: other work may disturb a window, but none makes it faster. A window is
longer than the 100 ms in which the kernel doles out a CPU quota, or a short burst would hide the quota.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

WINDOW_S = 0.25
WINDOWS = 3
LEAST_S = 0.004
"""A product of matrices should take so long, or its start is what is measured."""
MAX_SIDE = 4096
LEAST_SHARE = 0.05
"""With less of its cores than this, nothing can be said of their speed."""
ARRAY_FLOATS = 1 << 24
"""Three such arrays are larger than the caches that two cores share; more threads get more, up to the maximum."""
MAX_ARRAY_FLOATS = 1 << 28


class Window(NamedTuple):
    """One stretch of work."""

    rate: float
    """Work per second of wall clock."""
    share: float
    """CPU time that this process got, as a part of what its threads could use; 0 to 1."""
    idle_cores: float
    """Of the CPUs it may run on: so many were idle meanwhile."""
    stolen_cores: float
    """So many were taken by the hypervisor."""


class Meter:
    """Figures of this node; every call of `measure` may better them."""

    def __init__(self) -> None:
        self._threads = torch.get_num_threads()
        self._windows: dict[str, list[Window]] = {"fp32": [], "bf16": [], "memory": []}

    def measure(self) -> None:
        """About 2.5 s of work."""
        for kind, (work, amount) in (("fp32", _product(torch.float32)), ("bf16", _product(torch.bfloat16)),
                                     ("memory", _triad(self._threads))):
            work()
            self._windows[kind] += [_window(work, amount) for _ in range(WINDOWS)]

    def figures(self) -> dict[str, float]:
        """GFLOP/s of products, GB/s of memory, as they were and as they would be of cores that nobody else uses."""
        best = max(self._windows["fp32"], key=lambda window: window.share)
        found = {"threads": float(self._threads), "share": best.share, "idle_cores": best.idle_cores,
                 "stolen_cores": best.stolen_cores}
        for kind, windows in self._windows.items():
            found[kind] = max(window.rate for window in windows) / 1e9
            found[f"{kind}_undisturbed"] = max(window.rate / max(window.share, LEAST_SHARE) for window in windows) / 1e9
        return found


def _product(dtype: torch.dtype) -> tuple[Callable[[], object], float]:
    """A product of two square matrices, and its floating-point operations."""
    side = 256
    while True:
        left, right, out = (torch.ones(side, side, dtype=dtype) for _ in range(3))

        def multiply(left: torch.Tensor = left, right: torch.Tensor = right, out: torch.Tensor = out) -> object:
            return torch.mm(left, right, out=out)

        multiply()
        begin = time.perf_counter()
        multiply()
        if time.perf_counter() - begin >= LEAST_S or side >= MAX_SIDE:
            return multiply, 2.0 * side**3
        side *= 2


def _triad(threads: int) -> tuple[Callable[[], object], float]:
    """a = b + s c over arrays that no cache holds, and the bytes read and written (STREAM's count)."""
    count = min(MAX_ARRAY_FLOATS, ARRAY_FLOATS * max(1, threads // 2))
    b, c, out = torch.ones(count), torch.ones(count), torch.ones(count)
    return lambda: torch.add(b, c, alpha=3.0, out=out), 3.0 * 4 * count


def _window(work: Callable[[], object], amount: float) -> Window:
    threads = torch.get_num_threads()
    cpus = os.sched_getaffinity(0)
    idle, stolen = _unused(cpus)
    cpu, begin, times = time.process_time(), time.perf_counter(), 0
    while (wall := time.perf_counter() - begin) < WINDOW_S:
        work()
        times += 1
    cpu = time.process_time() - cpu
    idle_after, stolen_after = _unused(cpus)
    return Window(amount * times / wall, min(1.0, cpu / wall / min(threads, len(cpus))),
                  max(0.0, idle_after - idle) / wall, max(0.0, stolen_after - stolen) / wall)


def _unused(cpus: set[int], stat: Path = Path("/proc/stat")) -> tuple[float, float]:
    """Seconds that these CPUs have been idle, and that the hypervisor has taken; zeros if the kernel does not tell."""
    idle = stolen = 0.0
    try:
        lines = stat.read_text().splitlines()
        ticks = os.sysconf("SC_CLK_TCK")
        for line in lines:
            name, *numbers = line.split()
            if name.startswith("cpu") and name[3:].isdigit() and int(name[3:]) in cpus:
                idle += (int(numbers[3]) + int(numbers[4])) / ticks
                stolen += int(numbers[7]) / ticks
    except (OSError, ValueError, IndexError):
        return 0.0, 0.0
    return idle, stolen
