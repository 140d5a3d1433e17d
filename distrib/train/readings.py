"""What a rank and its node tell of themselves, by the kernel's counters: read at looks, without a thread."""

from __future__ import annotations

import contextlib
import math
import os
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from distrib.comm.oneccl import interface_of, own_address

NAN = math.nan


@dataclass(frozen=True)
class RankReading:
    """One rank since the last look. What can not be read is NaN."""

    own_cores: float = NAN
    """Processors that this process kept busy, with all its threads."""
    waited_s: float = NAN
    """Seconds that its main thread could have run and had no processor."""
    throttled: float = NAN
    """Part of the scheduler's periods in which the CPU limit of its cgroup stopped it; 0 without a limit."""
    ghz: float = NAN
    """Present frequency of one of its processors."""


@dataclass(frozen=True)
class NodeReading:
    """One node since the last look, with all that runs there. What can not be read is NaN."""

    cpu_percent: float = NAN
    """Of all processors; waiting for disks is not busy."""
    cores: float = NAN
    """Processors that the kernel schedules."""
    steal_percent: float = NAN
    """Of all processors' time, what the hypervisor gave to others."""
    memory_used_gb: float = NAN
    memory_available_gb: float = NAN
    """1e9 bytes."""
    swap_mb_per_s: float = NAN
    """To and from swap, 1e6 bytes a second."""
    sent_mb_per_s: float = NAN
    received_mb_per_s: float = NAN
    """Over the interface that leads to rank 0; without one, over all but loopback."""


class RankMeter:
    """Reads this process."""

    def __init__(self) -> None:
        self._last = self._counters()

    def read(self) -> RankReading:
        """Since the last call."""
        wall_s, cpu_s, waited_s, limits = self._last
        self._last = now = self._counters()
        passed_s = max(now[0] - wall_s, 1e-9)
        throttled = [(stopped - were_stopped) / max(periods - were, 1)
                     for (periods, stopped), (were, were_stopped) in zip(now[3], limits, strict=False)]
        return RankReading((now[1] - cpu_s) / passed_s, now[2] - waited_s, max(throttled, default=NAN),
                           _frequency_ghz())

    def _counters(self) -> tuple[float, float, float, list[tuple[int, int]]]:
        waited_s = NAN
        with contextlib.suppress(OSError, ValueError, IndexError):
            waited_s = int(Path("/proc/self/schedstat").read_text().split()[1]) / 1e9
        return time.perf_counter(), time.process_time(), waited_s, list(_cpu_limits())


class NodeMeter:
    """Reads the node; one rank of each node has one. ``towards``: host that the training's messages go to, or ''."""

    def __init__(self, towards: str) -> None:
        self.interface = _interface(towards)
        """None: all but loopback."""
        self._last = self._counters()

    def read(self) -> NodeReading:
        """Since the last call."""
        before, self._last = self._last, self._counters()
        passed_s = max(self._last[0] - before[0], 1e-9)
        swapped, sent, received = ((now - was) / passed_s / 1e6
                                   for now, was in zip(self._last[1:], before[1:], strict=True))
        with contextlib.suppress(OSError, psutil.Error):
            cpu, memory = psutil.cpu_times_percent(), psutil.virtual_memory()
            return NodeReading(round(100 - cpu.idle - getattr(cpu, "iowait", 0.0), 1), psutil.cpu_count() or NAN,
                               getattr(cpu, "steal", 0.0), memory.used / 1e9, memory.available / 1e9,
                               swapped, sent, received)
        return NodeReading(swap_mb_per_s=swapped, sent_mb_per_s=sent, received_mb_per_s=received)

    def _counters(self) -> tuple[float, float, float, float]:
        """(clock, bytes swapped, sent, received)."""
        swapped = sent = received = NAN
        with contextlib.suppress(OSError, psutil.Error), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # psutil tells where the kernel does not count
            swap = psutil.swap_memory()
            swapped = float(swap.sin + swap.sout)
        with contextlib.suppress(OSError, psutil.Error):
            chosen = [counts for name, counts in psutil.net_io_counters(pernic=True).items()
                      if (name == self.interface if self.interface else name != "lo")]
            sent, received = (float(sum(counts)) for counts in
                              ([c.bytes_sent for c in chosen], [c.bytes_recv for c in chosen]))
        return time.perf_counter(), swapped, sent, received


def _interface(towards: str) -> str | None:
    with contextlib.suppress(OSError, psutil.Error):
        name = interface_of(own_address(towards)) if towards else None
        return name if name != "lo" else None
    return None


def _frequency_ghz() -> float:
    with contextlib.suppress(OSError, ValueError):
        cpu = min(os.sched_getaffinity(0))
        return int(Path(f"/sys/devices/system/cpu/cpu{cpu}/cpufreq/scaling_cur_freq").read_text()) / 1e6
    return NAN


def _cpu_limits(cgroup: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")
                ) -> Iterator[tuple[int, int]]:
    """(periods, periods in which it was stopped) of this process's cgroup and of those around it."""
    try:
        lines = cgroup.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        number, controllers, path = line.split(":", 2)
        if number != "0" and "cpu" not in controllers.split(","):
            continue
        top = root if number == "0" else root / controllers
        own = top / path.lstrip("/")
        for folder in (own, *own.parents):
            with contextlib.suppress(OSError, ValueError, KeyError):
                counts = dict(entry.split() for entry in (folder / "cpu.stat").read_text().splitlines())
                yield int(counts["nr_periods"]), int(counts["nr_throttled"])
            if folder == top:
                break
