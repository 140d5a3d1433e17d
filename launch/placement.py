"""Which cores, memory and threads each rank of one machine gets: pure functions of its topology and the wishes.

Ranks own disjoint runs of physical cores, in the order of NUMA nodes, so that neighbours share caches and memory.
The second hardware threads of cores stay free, unless there are more ranks, or more threads wished, than cores:
two compute threads on one core share its multipliers and gain nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from launch.topology import Core, Topology, format_list

WITHIN_NODE = 0.85
"""Ranks are kept inside NUMA nodes if the smallest then has at least this part of an even share of cores."""


@dataclass(frozen=True)
class Place:
    """What one rank gets."""

    cpus: tuple[int, ...]
    """Hardware threads it may run on; sorted, never empty."""
    threads: int
    """Threads it should compute with."""
    memory_node: int | None
    """NUMA node to take memory from; None where there is no choice, or its cores lie on several."""


@dataclass(frozen=True)
class Placement:
    """One machine shared out among ranks."""

    places: tuple[Place, ...]
    warnings: tuple[str, ...] = ()
    """What will cost speed."""
    notes: tuple[str, ...] = ()
    """Why something is left idle."""


def count_ranks(topology: Topology, threads_per_rank: int | None) -> int:
    """The number of ranks that ``ranks_per_node: auto`` stands for."""
    budget = _budget(topology)
    if threads_per_rank is None:
        return min(len(topology.nodes), budget)
    fitting = sum(len(cores) // threads_per_rank for cores in _by_node(topology.cores))
    return max(1, min(fitting, budget // threads_per_rank))


def place(topology: Topology, num_ranks: int, threads_per_rank: int | None = None) -> Placement:
    """Share ``topology`` out among ``num_ranks`` ranks (1 or more)."""
    cores, budget = topology.cores, _budget(topology)
    warnings: list[str] = []
    notes: list[str] = []
    shares: list[tuple[int, ...]]
    if num_ranks > len(cores):
        # Physical cores first, then the second threads of cores, then round again.
        depth = max(len(core.cpus) for core in cores)
        order = [core.cpus[i] for i in range(depth) for core in cores if i < len(core.cpus)]
        shares = [(order[rank % len(order)],) for rank in range(num_ranks)]
        limits = [1] * num_ranks
        warnings.append(f"{num_ranks} ranks share {_count(len(cores), 'core')}; more ranks than cores run slower")
    else:
        groups = _share(cores, num_ranks)
        floating = topology.quota is not None
        wished = threads_per_rank or 0
        # Under a quota the CPUs are others' as well, and the kernel must be free to choose among them.
        shares = [
            tuple(cpu for core in group for cpu in (core.cpus if floating or wished > len(group) else core.cpus[:1]))
            for group in groups
        ]
        limits = [min(len(group), max(1, budget // num_ranks)) for group in groups]
        if budget < num_ranks:
            warnings.append(f"{num_ranks} ranks share {topology.quota:g} CPUs (the quota of this container or job)")
    if threads_per_rank:
        by_quota = math.inf if topology.quota is None else max(1.0, topology.quota / num_ranks)
        crowded = sum(threads_per_rank > min(len(share), by_quota) for share in shares)
        if crowded:
            warnings.append(f"threads_per_rank is {threads_per_rank}, more than {crowded} of {num_ranks} ranks "
                            "have hardware threads or quota for")
    if topology.quota is not None:
        notes.append(f"a quota of {topology.quota:g} CPUs is the limit: compute threads are as many as it allows, "
                     "and the kernel chooses where they run")
    idle = sorted(set(topology.cpus).difference(*shares))
    if idle:
        notes.append(f"idle: CPUs {format_list(idle)}, second hardware threads of cores that compute")
    places = tuple(
        Place(tuple(sorted(share)), threads_per_rank or limit, _memory_node(topology, share))
        for share, limit in zip(shares, limits, strict=True)
    )
    return Placement(places, tuple(warnings), tuple(notes))


def _budget(topology: Topology) -> int:
    """Compute threads that can run at once: one for each physical core, within the quota."""
    if topology.quota is None:
        return len(topology.cores)
    return max(1, min(len(topology.cores), math.floor(topology.quota)))


def _by_node(cores: tuple[Core, ...]) -> list[tuple[Core, ...]]:
    nodes = sorted({core.node for core in cores})
    return [tuple(core for core in cores if core.node == node) for node in nodes]


def _share(cores: tuple[Core, ...], num_ranks: int) -> list[tuple[Core, ...]]:
    """Disjoint, non-empty runs of ``cores`` that cover them; at most as many ranks as cores.

    Ranks advance in step, so the smallest share decides the speed: it is made as large as it can be, except that
    it may be a little smaller for the sake of not crossing from one node's memory to another's.
    """
    nodes = _by_node(cores)
    if num_ranks >= len(nodes):
        counts = [1] * len(nodes)
        for _ in range(num_ranks - len(nodes)):  # the next rank goes where shares are largest
            counts[max(range(len(nodes)), key=lambda i: (len(nodes[i]) / (counts[i] + 1), -i))] += 1
        if all(count <= len(node) for count, node in zip(counts, nodes, strict=True)):
            groups = [run for node, count in zip(nodes, counts, strict=True) for run in _runs(node, count)]
            if min(map(len, groups)) >= WITHIN_NODE * (len(cores) // num_ranks):
                return groups
    return _runs(cores, num_ranks)


def _runs(cores: tuple[Core, ...], count: int) -> list[tuple[Core, ...]]:
    """``count`` contiguous runs whose lengths differ by one at most."""
    return [cores[len(cores) * i // count:len(cores) * (i + 1) // count] for i in range(count)]


def _memory_node(topology: Topology, cpus: tuple[int, ...]) -> int | None:
    mine = {core.node for core in topology.cores if not set(cpus).isdisjoint(core.cpus)}
    if len(mine) > 1 or len(topology.memory_nodes) < 2:
        return None
    return topology.memory_nearest[mine.pop()]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
