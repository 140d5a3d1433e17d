"""What the doctor says, and what it judges by."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from launch.cluster import Cluster
from launch.cluster import Node as Shape
from launch.facts import Compute, Machine, Node, Probe

Value = TypeVar("Value", bound=Hashable)


@dataclass(frozen=True)
class Finding:
    """Something that is wrong."""

    check: str
    """reach, probe, folder, versions, processor, cores, frequency, speed, memory, disk, shm, limits, clock, names,
    link, latency or all-reduce."""
    hosts: tuple[str, ...]
    """Whose fault it is; both ends of a link where it may be either's; all, where it is nobody's alone."""
    fact: str
    cause: str
    """The likely one."""
    remedy: str


@dataclass(frozen=True)
class Case:
    """The nodes of one examination."""

    cluster: Cluster
    nodes: tuple[Node, ...]
    """By rank."""

    @property
    def machines(self) -> dict[str, Machine]:
        """Of those nodes that told of themselves, by name."""
        return {node.name: node.machine for node in self.nodes if node.machine is not None}

    @property
    def probes(self) -> dict[str, Probe]:
        """Of those nodes whose probe left anything, by name."""
        return {node.name: node.probe for node in self.nodes if node.probe is not None}

    @property
    def computes(self) -> dict[str, Compute]:
        """Of those nodes that computed, by name."""
        return {name: probe.compute for name, probe in self.probes.items() if probe.compute is not None}

    def apart(self, first: str, second: str) -> bool:
        """Whether two hosts have cores of their own, rather than being parts of one machine."""
        boots = [self.probes[host].boot for host in (first, second) if host in self.probes]
        return len(boots) < 2 or not boots[0] or boots[0] != boots[1]

    def name(self, rank: int) -> str:
        """The name of a rank's host."""
        return self.nodes[rank].name if rank < len(self.nodes) else f"rank {rank}"

    def shape(self, host: str) -> Shape | None:
        """What the cluster file says that a host is."""
        for group in self.cluster.groups:
            if host in group.hosts and group.node is not None:
                return group.node
        return self.cluster.node


def strangers(values: Mapping[str, Value]) -> tuple[Value | None, dict[Value, list[str]]]:
    """(what most hosts have, what others have instead: its hosts). Without a majority: (None, everything)."""
    counts = Counter(values.values())
    common = next((value for value, number in counts.items() if 2 * number > len(values)), None)
    found: dict[Value, list[str]] = {}
    for host, value in values.items():
        if value != common:
            found.setdefault(value, []).append(host)
    return common, found if len(counts) > 1 else {}


Pair = tuple[str, str]


def blame(pairs: Iterable[Pair], measured: Iterable[Pair]) -> tuple[list[str], list[Pair]]:
    """(hosts all of whose links are among the bad ``pairs``, bad pairs of other hosts).

    A host that has only one link is not blamed alone: it may be the other end's.
    """
    bad, links = {frozenset(pair) for pair in pairs}, {frozenset(pair) for pair in measured}
    partners: dict[str, set[str]] = {}
    for link in links:
        first, second = sorted(link)
        partners.setdefault(first, set()).add(second)
        partners.setdefault(second, set()).add(first)
    guilty = [host for host, others in sorted(partners.items())
              if len(others) > 1 and all(frozenset((host, other)) in bad for other in others)]
    if len(guilty) == len(partners):
        return [], sorted((min(pair), max(pair)) for pair in bad)
    rest = [pair for pair in bad if not pair & set(guilty)]
    return guilty, sorted((min(pair), max(pair)) for pair in rest)


def listed(hosts: Sequence[str], most: int = 6) -> str:
    """Names for a sentence, the first few of many."""
    names = list(hosts)
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


def gigabytes(number: float) -> str:
    """Bytes, for people."""
    return f"{number / 2**30:.3g} GiB" if number >= 2**30 else f"{number / 2**20:.3g} MiB"
