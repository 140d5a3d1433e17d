"""How fast this node computes and reads memory, on the cores that the launcher gave to this rank.

Each thread works for itself, so that one which has to wait for its core delays no other, and work per CPU second says
how fast the cores are, whoever else uses them. Each figure is the best of a few windows: other work may disturb a
window, but none makes it faster. A window is longer than the 100 ms in which the kernel doles out a CPU quota, or a
short burst would hide the quota.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

WINDOW_S = 0.25
WINDOWS = 3
LEAST_S = 0.005
"""A product of matrices should take so long, or its start is what is measured."""
MAX_SIDE = 2048
ARRAY_FLOATS = 1 << 23
"""Three such arrays a thread are larger than a core's share of any cache."""
UNDISTURBED = 0.75
"""With less of its cores than this, a window says little of their speed: caches and multipliers were shared."""


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
        torch.set_num_threads(1)  # of each thread that works here
        try:
            for kind, windows in self._windows.items():
                works = [_work(kind) for _ in range(self._threads)]
                windows += [_window(works) for _ in range(WINDOWS)]
        finally:
            torch.set_num_threads(self._threads)

    def figures(self) -> dict[str, float | None]:
        """GFLOP/s of products and GB/s of memory: as they were, and of cores that nobody else uses (None: unknown)."""
        best = max((window for windows in self._windows.values() for window in windows), key=lambda one: one.share)
        found: dict[str, float | None] = {"threads": float(self._threads), "share": best.share,
                                          "idle_cores": best.idle_cores, "stolen_cores": best.stolen_cores}
        for kind, windows in self._windows.items():
            found[kind] = max(window.rate for window in windows) / 1e9
            undisturbed = [window.rate / window.share for window in windows if window.share >= UNDISTURBED]
            found[f"{kind}_undisturbed"] = max(undisturbed) / 1e9 if undisturbed else None
        return found


Work = tuple[Callable[[], object], float]


def _work(kind: str) -> Work:
    return _triad() if kind == "memory" else _product({"fp32": torch.float32, "bf16": torch.bfloat16}[kind])


def _product(dtype: torch.dtype) -> Work:
    """A product of two square matrices, and its floating-point operations."""
    side = 256
    while True:
        left, right, out = (torch.ones(side, side, dtype=dtype) for _ in range(3))

        def multiply(left: torch.Tensor = left, right: torch.Tensor = right, out: torch.Tensor = out) -> object:
            return torch.mm(left, right, out=out)

        multiply()
        begin = time.thread_time()
        multiply()
        if time.thread_time() - begin >= LEAST_S or side >= MAX_SIDE:
            return multiply, 2.0 * side**3
        side *= 2


def _triad() -> Work:
    """a = b + s c over arrays that no cache holds, and the bytes read and written (STREAM's count)."""
    b, c, out = torch.ones(ARRAY_FLOATS), torch.ones(ARRAY_FLOATS), torch.ones(ARRAY_FLOATS)
    return lambda: torch.add(b, c, alpha=3.0, out=out), 3.0 * 4 * ARRAY_FLOATS


def _window(works: list[Work]) -> Window:
    done = [0.0] * len(works)
    cpus = os.sched_getaffinity(0)
    end = 0.0
    ready = threading.Barrier(len(works) + 1)

    def work_on(number: int) -> None:
        work, amount = works[number]
        ready.wait()
        while time.perf_counter() < end:
            work()
            done[number] += amount

    threads = [threading.Thread(target=work_on, args=(number,)) for number in range(len(works))]
    for thread in threads:
        thread.start()
    idle, stolen = _unused(cpus)
    cpu, begin = time.process_time(), time.perf_counter()
    end = begin + WINDOW_S
    ready.wait()
    for thread in threads:
        thread.join()
    wall, cpu = time.perf_counter() - begin, time.process_time() - cpu
    idle_after, stolen_after = _unused(cpus)
    return Window(sum(done) / wall, min(1.0, cpu / wall / min(len(works), len(cpus))),
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
