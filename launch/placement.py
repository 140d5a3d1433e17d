"""Which cores, memory and threads each rank of one machine gets: pure functions of its topology and the wishes.

Ranks own disjoint runs of physical cores, in the order of NUMA nodes, so that neighbours share caches and memory. The
last cores of a run may be set aside for communication. The second hardware threads of cores stay free, unless they are
wished, or there are more ranks, or more threads wished, than cores: two compute threads on one core share its
multipliers and gain nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from itertools import accumulate, pairwise

from distrib.errors import ConfigError, counted
from launch.topology import Core, Topology, format_list

WITHIN_NODE = 0.85
"""Ranks are kept inside NUMA nodes, and inside last-level caches, if the smallest then has at least this part of an
even share of cores."""
LEVELS: tuple[Callable[[Core], Hashable], ...] = (lambda core: core.node, lambda core: (core.node, core.cache))
"""What a run of cores should rather not straddle, the most costly first."""


@dataclass(frozen=True)
class Wishes:
    """What a cluster file asks for each rank."""

    threads_per_rank: int | None = None
    """Threads to compute with; by default one for each of its compute cores."""
    comm_cores: int = 0
    """Physical cores set aside for communication threads."""
    hyper_threads: bool = False
    """Compute on all hardware threads of a core."""


@dataclass(frozen=True)
class Place:
    """What one rank gets."""

    cpus: tuple[int, ...]
    """Hardware threads it may run on; sorted, never empty."""
    threads: int
    """Threads it should compute with."""
    memory_node: int | None
    """NUMA node to take memory from; None where there is no choice, or its cores lie on several."""
    comm_cpus: tuple[int, ...] = ()
    """Hardware threads for communication, one a core, none of ``cpus``; sorted."""


@dataclass(frozen=True)
class Placement:
    """One machine shared out among ranks."""

    places: tuple[Place, ...]
    warnings: tuple[str, ...] = ()
    """What will cost speed."""
    notes: tuple[str, ...] = ()
    """Why something is left idle."""


def count_ranks(topology: Topology, wishes: Wishes, per_numa_node: int | None = None) -> int:
    """The number of ranks that ``ranks_per_node: auto`` stands for, or ``per_numa_node`` on each node with cores."""
    nodes = _parts(topology.cores, LEVELS[0])
    if per_numa_node is not None:
        return per_numa_node * len(nodes)
    # Hardware threads that a core computes with, and cores that a rank needs.
    width = min(len(core.cpus) for core in topology.cores) if wishes.hyper_threads else 1
    need = math.ceil((wishes.threads_per_rank or 1) / width) + wishes.comm_cores
    count = len(nodes) if wishes.threads_per_rank is None else sum(len(node) // need for node in nodes)
    if topology.quota is not None:
        count = min(count, math.floor(topology.quota) // ((wishes.threads_per_rank or 1) + wishes.comm_cores))
    while count > 1 and min(map(len, _share(topology.cores, count, need))) <= wishes.comm_cores:
        count -= 1
    return max(1, count)


def place(topology: Topology, num_ranks: int, wishes: Wishes) -> Placement:
    """Share ``topology`` out among ``num_ranks`` ranks (1 or more).

    Raises ConfigError if communication would take the last core of a rank.
    """
    cores, wished, quota = topology.cores, wishes.threads_per_rank, topology.quota
    if num_ranks > len(cores):
        return _crowd(topology, num_ranks, wishes)
    warnings: list[str] = []
    notes: list[str] = []
    groups = _share(cores, num_ranks, (wished or 1) + wishes.comm_cores)
    if min(map(len, groups)) <= wishes.comm_cores:
        raise _no_core_left(len(cores), num_ranks, min(map(len, groups)), wishes)
    parted = [_set_aside(group, wishes.comm_cores) for group in groups]
    # Under a quota the CPUs are others' as well, and the kernel must be free to choose among them.
    shares = [
        tuple(cpu for core in group for cpu in
              (core.cpus if wishes.hyper_threads or quota is not None or (wished or 0) > len(group) else core.cpus[:1]))
        for group, _ in parted
    ]
    fitting = [len(share) if wishes.hyper_threads else len(group)
               for share, (group, _) in zip(shares, parted, strict=True)]
    by_quota = math.inf if quota is None else max(1.0, quota / num_ranks - wishes.comm_cores)
    # Ranks advance in step: what one has more than an even share gains nothing.
    limits = [math.floor(min(number, sum(fitting) // num_ranks, by_quota)) for number in fitting]
    if quota is not None:
        least = num_ranks * (1 + wishes.comm_cores)
        if max(1, math.floor(quota)) < least:
            warnings.append(f"{counted(num_ranks, 'rank')} of {counted(least, 'thread')} or more share {quota:g} CPUs "
                            "(the quota of this container or job)")
        notes.append(f"a quota of {quota:g} CPUs is the limit: compute threads are as many as it allows, "
                     "and the kernel chooses where they run")
    if wished:
        crowded = sum(wished > min(len(share), by_quota) for share in shares)
        if crowded:
            warnings.append(f"threads_per_rank is {wished}, more than {crowded} of {num_ranks} ranks "
                            "have hardware threads or quota for")
        if quota is None and wished < min(fitting):
            notes.append(f"threads_per_rank is {wished}, fewer than the {min(fitting)} that a rank has room for: "
                         "the rest is left to its other work, such as loading data")
    places = tuple(
        Place(tuple(sorted(share)), wished or limit, _memory_node(topology, group),
              tuple(sorted(core.cpus[0] for core in comm)))
        for share, limit, group, (_, comm) in zip(shares, limits, groups, parted, strict=True)
    )
    return Placement(places, tuple(warnings), (*notes, *_idle(topology, places)))


def _crowd(topology: Topology, num_ranks: int, wishes: Wishes) -> Placement:
    """More ranks than cores: one hardware thread for each, of which several ranks may have the same."""
    cores = topology.cores
    if wishes.comm_cores:
        raise _no_core_left(len(cores), num_ranks, 1, wishes)
    # Physical cores first, then the second threads of cores, then round again.
    depth = max(len(core.cpus) for core in cores)
    order = [(core, core.cpus[i]) for i in range(depth) for core in cores if i < len(core.cpus)]
    places = tuple(
        Place((cpu,), wishes.threads_per_rank or 1, _memory_node(topology, (core,)))
        for core, cpu in (order[rank % len(order)] for rank in range(num_ranks))
    )
    warnings = [f"{num_ranks} ranks share {counted(len(cores), 'core')}; more ranks than cores run slower"]
    if (wishes.threads_per_rank or 1) > 1:
        warnings.append(f"threads_per_rank is {wishes.threads_per_rank}, more than {num_ranks} of {num_ranks} ranks "
                        "have hardware threads or quota for")
    notes = [] if topology.quota is None else [
        f"a quota of {topology.quota:g} CPUs is the limit of what {num_ranks} ranks compute"]
    return Placement(places, tuple(warnings), (*notes, *_idle(topology, places)))


def _no_core_left(num_cores: int, num_ranks: int, smallest: int, wishes: Wishes) -> ConfigError:
    fewer = "fewer ranks" if num_ranks > 1 else "a machine or job of more cores"
    return ConfigError(
        f"comm_cores is {wishes.comm_cores}, and of {counted(num_ranks, 'rank')} on {counted(num_cores, 'core')} the "
        f"smallest has {counted(smallest, 'core')}: none would be left to compute", "nothing was started",
        f"set comm_cores to {max(0, smallest - 1)} at most, or ask for {fewer}")


def _share(cores: tuple[Core, ...], num_ranks: int, need: int) -> list[tuple[Core, ...]]:
    """Disjoint, non-empty runs of ``cores`` that cover them; at most as many ranks as cores.

    Ranks advance in step, so the smallest share decides the speed: it is made as large as it can be, except that
    it may be a little smaller, but not below ``need``, for the sake of not crossing from one node's memory, or one
    cache, to another's.
    """
    even = len(cores) // num_ranks
    return _divide(cores, num_ranks, max(WITHIN_NODE * even, min(need, even)), LEVELS)


def _divide(cores: tuple[Core, ...], count: int, least: float,
            levels: tuple[Callable[[Core], Hashable], ...]) -> list[tuple[Core, ...]]:
    """``count`` runs that straddle none of ``levels`` if each can have ``least`` cores so; else as even as can be."""
    if not levels:
        return _runs(cores, count)
    parts = _parts(cores, levels[0])
    if count < len(parts):
        runs = _whole(parts, count)
    else:
        counts = [1] * len(parts)
        for _ in range(count - len(parts)):  # the next rank goes where shares are largest
            counts[max(range(len(parts)), key=lambda i: (len(parts[i]) / (counts[i] + 1), -i))] += 1
        if any(number > len(part) for number, part in zip(counts, parts, strict=True)):
            runs = []
        else:
            runs = [run for part, number in zip(parts, counts, strict=True)
                    for run in _divide(part, number, least, levels[1:])]
    return runs if min(map(len, runs), default=0) >= least else _divide(cores, count, least, levels[1:])


def _whole(parts: list[tuple[Core, ...]], count: int) -> list[tuple[Core, ...]]:
    """``count`` runs of whole parts, cut at the borders nearest to even cuts; some may be empty."""
    borders = [0, *accumulate(map(len, parts))]
    cuts = [min(borders, key=lambda border: (abs(border - borders[-1] * i / count), border)) for i in range(count + 1)]
    cores = tuple(core for part in parts for core in part)
    return [cores[begin:end] for begin, end in pairwise(cuts)]


def _runs(cores: tuple[Core, ...], count: int) -> list[tuple[Core, ...]]:
    """``count`` contiguous runs whose lengths differ by one at most."""
    return [cores[len(cores) * i // count:len(cores) * (i + 1) // count] for i in range(count)]


def _parts(cores: tuple[Core, ...], level: Callable[[Core], Hashable]) -> list[tuple[Core, ...]]:
    parts: dict[Hashable, list[Core]] = {}
    for core in cores:
        parts.setdefault(level(core), []).append(core)
    return [tuple(part) for part in parts.values()]


def _set_aside(group: tuple[Core, ...], comm_cores: int) -> tuple[tuple[Core, ...], tuple[Core, ...]]:
    """A rank's cores as those that compute and those that communicate.

    The latter are the last on one NUMA node: the one with most of the rank's cores, where several.
    """
    nodes = _parts(group, LEVELS[0])
    most = max(reversed(nodes), key=len)
    if len(most) < comm_cores:
        most = group
    aside = set(most[len(most) - comm_cores:])
    return tuple(core for core in group if core not in aside), tuple(core for core in group if core in aside)


def _memory_node(topology: Topology, group: tuple[Core, ...]) -> int | None:
    mine = {core.node for core in group}
    if len(mine) > 1 or len(topology.memory_nodes) < 2:
        return None
    return topology.memory_nearest[mine.pop()]


def _idle(topology: Topology, places: tuple[Place, ...]) -> tuple[str, ...]:
    idle = set(topology.cpus).difference(*(where.cpus + where.comm_cpus for where in places))
    return (f"idle: CPUs {format_list(idle)}, second hardware threads of cores in use",) if idle else ()
