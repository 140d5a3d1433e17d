"""What this process may use of its machine: cores, hardware threads, NUMA nodes, shared caches, and CPU limits.

Read from the kernel's files below a root that tests replace. Files that a container hides are no error: a
processor that tells nothing of itself counts as a core of its own, on node 0. What placement does not need is in
launch.machine: a rank's wrapper imports this module without site-packages, before every start.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from distrib.errors import ConfigError, WorldError


@dataclass(frozen=True)
class Core:
    """A physical core, with those of its hardware threads (the kernel's CPU numbers) that may be used."""

    cpus: tuple[int, ...]
    socket: int
    node: int
    cache: int = 0
    """The first CPU of the machine that shares this core's last-level cache; 0 where that is not told."""


@dataclass(frozen=True)
class Topology:
    """The part of a machine that this process may use."""

    cores: tuple[Core, ...]
    """By NUMA node, then socket, then last-level cache, then first CPU; at least one."""
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
    node_of = {cpu: node for node in read_numbers(system / "node/online") for cpu in
               read_numbers(system / f"node/node{node}/cpulist")}
    # What one CPU tells of those that share something with it need not be read again for them.
    siblings: dict[int, tuple[int, ...]] = {}
    caches: dict[int, int] = {}
    cores: dict[tuple[int, ...], list[int]] = {}
    level = ""
    for cpu in usable:
        folder = f"{system}/cpu/cpu{cpu}"
        if cpu not in siblings:
            mine = read_numbers(f"{folder}/topology/thread_siblings_list") or (cpu,)
            siblings |= dict.fromkeys((cpu, *mine), mine)
        if cpu not in caches:
            sharing = read_numbers(f"{folder}/cache/{level}/shared_cpu_list") if level else ()
            if not sharing:
                level = _last_level(Path(folder) / "cache")
                sharing = read_numbers(f"{folder}/cache/{level}/shared_cpu_list") or (0,)
            caches |= dict.fromkeys((cpu, *sharing) if cpu in sharing else (cpu,), sharing[0])
        cores.setdefault(siblings[cpu], []).append(cpu)
    found = [
        Core(tuple(cpus), max(0, _number(f"{system}/cpu/cpu{cpus[0]}/topology/physical_package_id")),
             node_of.get(cpus[0], 0), caches[cpus[0]])
        for cpus in cores.values()
    ]
    found.sort(key=_order)
    quota = _read_quota(root)
    return Topology(
        tuple(found), _nearest_memory(root, {core.node for core in found}),
        quota if quota is not None and quota < len(usable) else None,
        len(read_numbers(system / "cpu/online")) or len(usable),
    )


def describe(sockets: int, numa_per_socket: int, cores_per_socket: int, threads_per_core: int,
             caches_per_socket: int | None = None) -> Topology:
    """The topology of a whole machine of that shape, numbered as Linux does on most: for planning elsewhere.

    CPUs count through the cores of all sockets, then through their second threads. Cores that do not divide evenly
    among NUMA nodes or last-level caches (one for each node by default) are spread. Raises ConfigError.
    """
    caches = caches_per_socket or numa_per_socket
    if min(sockets, numa_per_socket, cores_per_socket, threads_per_core, caches) < 1:
        raise ConfigError("a machine of less than one socket, NUMA node, core, thread or cache is none",
                          "nothing was planned", "write numbers from 1 up")
    if max(numa_per_socket, caches) > cores_per_socket:
        raise ConfigError(f"a socket of {cores_per_socket} cores has not {max(numa_per_socket, caches)} NUMA nodes or "
                          "caches", "nothing was planned", "check the numbers: each is for one socket")
    total = sockets * cores_per_socket
    cores = []
    for number in range(total):
        socket, mine = divmod(number, cores_per_socket)
        first = -(-(mine * caches // cores_per_socket) * cores_per_socket // caches)  # of the cores with this cache
        cores.append(Core(tuple(range(number, total * threads_per_core, total)), socket,
                          socket * numa_per_socket + mine * numa_per_socket // cores_per_socket,
                          socket * cores_per_socket + first))
    return Topology(tuple(sorted(cores, key=_order)), {core.node: core.node for core in cores}, None,
                    total * threads_per_core)


def _order(core: Core) -> tuple[int, int, int, tuple[int, ...]]:
    return core.node, core.socket, core.cache, core.cpus


def _last_level(caches: Path) -> str:
    """The folder name of the last-level cache among one CPU's ``caches``; empty if none is told."""
    found = [(_number(index / "level"), index.name) for index in sorted(caches.glob("index*"))]
    return max(found, default=(0, ""))[1]


def _nearest_memory(root: Path, nodes: set[int]) -> dict[int, int]:
    """The usable memory node nearest to each node of ``nodes``."""
    system = root / "sys/devices/system/node"
    with_memory = set(read_numbers(system / "has_memory"))
    for line in read_text(root / "proc/self/status").splitlines():
        if line.startswith("Mems_allowed_list:"):
            with_memory &= set(parse_list(line.partition(":")[2]))
    if not with_memory:
        return {node: node for node in nodes}
    online = read_numbers(system / "online")
    nearest = {}
    for node in nodes:
        # The kernel lists one distance for each node that is online, in order; the node's own is the least.
        distances = dict(zip(online, map(int, read_text(system / f"node{node}/distance").split()), strict=False))
        nearest[node] = min(with_memory, key=lambda other: (other != node, distances.get(other, 255), other))
    return nearest


def _read_quota(root: Path) -> float | None:
    """The tightest CPU quota among this process's control groups (version 2 or 1) and those above them."""
    return min((quota for group in control_groups(root, "cpu") for quota in _quota(group)), default=None)


def control_groups(root: Path, controller: str) -> list[Path]:
    """Folders, there or not, of the groups by which ``controller`` limits this process, and of those above them."""
    groups: list[Path] = []
    for line in read_text(root / "proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        if number == "0" and not controllers:
            mounts = [root / "sys/fs/cgroup", root / "sys/fs/cgroup/unified"]
        elif controller in controllers.split(","):
            mounts = [root / "sys/fs/cgroup" / controllers, root / "sys/fs/cgroup" / controller]
        else:
            continue
        # In a container the path may be the host's, and only some tail of it be there, or none.
        parts = [part for part in group.split("/") if part not in ("", "..")]
        groups += [mount.joinpath(*parts[:depth]) for mount in mounts for depth in range(len(parts) + 1)]
    return groups


def _quota(group: Path) -> list[float]:
    """CPU seconds a second that one control group sets: a list of one number, or empty for no limit."""
    limit, _, period = read_text(group / "cpu.max").partition(" ")
    if not limit:
        limit, period = read_text(group / "cpu.cfs_quota_us"), read_text(group / "cpu.cfs_period_us")
    try:
        return [int(limit) / int(period)] if int(limit) > 0 and int(period) > 0 else []
    except ValueError:  # "max", or no such file
        return []


def read_text(path: str | Path) -> str:
    """What a file of the kernel's says; empty if there is none, or it may not be read."""
    try:
        with open(path, errors="replace") as file:
            return file.read().strip()
    except OSError:
        return ""


def read_numbers(path: str | Path) -> tuple[int, ...]:
    """The numbers of a file that holds a kernel list; none if there is no such file."""
    try:
        return parse_list(read_text(path))
    except ValueError:
        return ()


def _number(path: str | Path) -> int:
    try:
        return int(read_text(path))
    except ValueError:
        return 0
