"""What this process may use of its machine: cores, hardware threads, NUMA nodes, and the limits set on it.

Read from the kernel's files below a root that tests replace. Files that a container hides are no error: a
processor that tells nothing of itself counts as a core of its own, on node 0.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from distrib.errors import WorldError


@dataclass(frozen=True)
class Core:
    """A physical core, with those of its hardware threads (the kernel's CPU numbers) that may be used."""

    cpus: tuple[int, ...]
    socket: int
    node: int


@dataclass(frozen=True)
class Topology:
    """The part of a machine that this process may use."""

    cores: tuple[Core, ...]
    """By NUMA node, then socket, then first CPU; at least one."""
    memory_nearest: dict[int, int]
    """For each NUMA node of a core: the nearest node whose memory may be used, itself if it has any."""
    quota: float | None = None
    """CPU seconds a second that a container or job may use, where that is less than its CPUs."""
    machine_cpus: int = 0
    """Hardware threads of the whole machine, used or not."""

    @property
    def cpus(self) -> tuple[int, ...]:
        """All usable hardware threads, in order of the cores."""
        return tuple(cpu for core in self.cores for cpu in core.cpus)

    @property
    def nodes(self) -> tuple[int, ...]:
        """NUMA nodes that have usable cores."""
        return tuple(sorted({core.node for core in self.cores}))

    @property
    def memory_nodes(self) -> tuple[int, ...]:
        """NUMA nodes whose memory is nearest to some core."""
        return tuple(sorted(set(self.memory_nearest.values())))


def parse_list(text: str) -> tuple[int, ...]:
    """The numbers of a kernel list such as ``0-3,8`` (empty for an empty one). Raises ValueError."""
    numbers: set[int] = set()
    for part in text.strip().split(","):
        if part:
            first, _, last = part.partition("-")
            numbers.update(range(int(first), int(last or first) + 1))
    return tuple(sorted(numbers))


def format_list(numbers: Iterable[int]) -> str:
    """The kernel's list of numbers: ``0-3,8``."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def read_topology(root: Path = Path("/"), allowed: Iterable[int] | None = None) -> Topology:
    """The usable part of the machine whose /sys and /proc are below ``root``; local.

    ``allowed`` are the CPUs that may be used; by default those of this process (its affinity, which a cpuset
    narrows). Raises WorldError if there are none.
    """
    usable = sorted(os.sched_getaffinity(0) if allowed is None else set(allowed))
    if not usable:
        raise WorldError("no CPU may be used by this process", "nothing was started", "check the job's CPU set")
    system = root / "sys/devices/system"
    node_of = {cpu: node for node in _numbers(system / "node/online") for cpu in
               _numbers(system / f"node/node{node}/cpulist")}
    cores: dict[tuple[int, ...], list[int]] = {}
    for cpu in usable:
        siblings = _numbers(system / f"cpu/cpu{cpu}/topology/thread_siblings_list") or (cpu,)
        cores.setdefault(siblings, []).append(cpu)
    found = [
        Core(tuple(cpus), max(0, _number(system / f"cpu/cpu{cpus[0]}/topology/physical_package_id")),
             node_of.get(cpus[0], 0))
        for cpus in cores.values()
    ]
    found.sort(key=lambda core: (core.node, core.socket, core.cpus))
    quota = _read_quota(root)
    return Topology(
        tuple(found), _nearest_memory(root, {core.node for core in found}),
        quota if quota is not None and quota < len(usable) else None,
        len(_numbers(system / "cpu/online")) or len(usable),
    )


def _nearest_memory(root: Path, nodes: set[int]) -> dict[int, int]:
    """The usable memory node nearest to each node of ``nodes``."""
    system = root / "sys/devices/system/node"
    with_memory = set(_numbers(system / "has_memory"))
    for line in _text(root / "proc/self/status").splitlines():
        if line.startswith("Mems_allowed_list:"):
            with_memory &= set(parse_list(line.partition(":")[2]))
    if not with_memory:
        return {node: node for node in nodes}
    online = _numbers(system / "online")
    nearest = {}
    for node in nodes:
        # The kernel lists one distance for each node that is online, in order; the node's own is the least.
        distances = dict(zip(online, map(int, _text(system / f"node{node}/distance").split()), strict=False))
        nearest[node] = min(with_memory, key=lambda other: (other != node, distances.get(other, 255), other))
    return nearest


def _read_quota(root: Path) -> float | None:
    """The tightest CPU quota among this process's control groups (version 2 or 1) and those above them."""
    quotas: list[float] = []
    for line in _text(root / "proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        if number == "0" and not controllers:
            mounts = [root / "sys/fs/cgroup", root / "sys/fs/cgroup/unified"]
        elif "cpu" in controllers.split(","):
            mounts = [root / "sys/fs/cgroup" / controllers, root / "sys/fs/cgroup/cpu"]
        else:
            continue
        # In a container the path may be the host's, and only some tail of it be there, or none.
        parts = [part for part in group.split("/") if part not in ("", "..")]
        for mount in mounts:
            for depth in range(len(parts) + 1):
                quotas += _quota(mount.joinpath(*parts[:depth]))
    return min(quotas, default=None)


def _quota(group: Path) -> list[float]:
    """CPU seconds a second that one control group sets: a list of one number, or empty for no limit."""
    limit, _, period = _text(group / "cpu.max").partition(" ")
    if not limit:
        limit, period = _text(group / "cpu.cfs_quota_us"), _text(group / "cpu.cfs_period_us")
    try:
        return [int(limit) / int(period)] if int(limit) > 0 and int(period) > 0 else []
    except ValueError:  # "max", or no such file
        return []


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _numbers(path: Path) -> tuple[int, ...]:
    try:
        return parse_list(_text(path))
    except ValueError:
        return ()


def _number(path: Path) -> int:
    try:
        return int(_text(path))
    except ValueError:
        return 0
