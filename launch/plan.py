"""What will run where: hosts, ranks, cores, environment and argv, decided before anything starts."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from distrib.errors import ConfigError, counted
from launch.allocator import Allocator, choose_allocator
from launch.cluster import Cluster, HostGroup, Node
from launch.environment import Seat, rank_environment, settled, travelling
from launch.job import Job
from launch.placement import Place, Wishes, count_ranks, place
from launch.topology import Topology, describe, format_list

PORT_LATER = "(a free port, chosen at the start)"
MAX_RANKS = 65536
WRAPPER = Path(__file__).with_name("rank.py")


@dataclass(frozen=True)
class RankPlan:
    """One rank."""

    rank: int
    host: str
    place: Place | None
    """None: the rank's supervisor decides when it sees the host, as the cluster file does not describe it."""
    environment: dict[str, str]
    """What is set for this rank, over the inherited environment."""


@dataclass(frozen=True)
class Plan:
    """Everything a launcher needs to start a command as ranks."""

    cluster: Cluster
    command: tuple[str, ...]
    """Program by absolute path, and arguments."""
    ranks: tuple[RankPlan, ...]
    removed: tuple[str, ...]
    """Names of inherited variables that ranks do not get."""
    allocator: Allocator
    warnings: tuple[str, ...]
    notes: tuple[str, ...]
    commands: tuple[tuple[str, ...], ...] = field(default=())
    """What a remote launcher will execute, its job folder's name left open."""
    script: str = ""
    """What sbatch would get, the same way."""

    def with_port(self, port: int, restarts: int = 0) -> Plan:
        """The plan with the port where ranks meet, and the number of starts before."""
        changed = {"MASTER_PORT": str(port), "TORCHELASTIC_RESTART_COUNT": str(restarts)}
        return replace(self, ranks=tuple(
            replace(rank, environment={**rank.environment, **changed}) for rank in self.ranks))

    def layout(self) -> tuple[tuple[str, ...], tuple[int, ...]]:
        """Hosts in the order of ranks, and the number of ranks of each."""
        counts: dict[str, int] = {}
        for rank in self.ranks:
            counts[rank.host] = counts.get(rank.host, 0) + 1
        return tuple(counts), tuple(counts.values())

    def job(self, *, attached: bool, environment: Mapping[str, str] = os.environ) -> Job:
        """What the ranks' supervisors are told."""
        cluster = self.cluster
        return Job(
            cluster.name, cluster.launcher, self.command, os.getcwd(), travelling(environment),
            own_environment(cluster), cluster.threads_per_rank, cluster.comm_cores, cluster.hyper_threads,
            cluster.allocator, cluster.interface, cluster.elastic,
            cluster.stop_grace_s, attached, *self.layout(), cluster.model_dump(mode="json"),
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values, for ``launch plan --json``."""
        local = self.cluster.launcher == "local"
        return {
            "cluster": self.cluster.model_dump(mode="json"),
            "command": list(self.command),
            "commands": [list(words) for words in self.commands],
            "script": self.script,
            "allocator": self.allocator.name,
            "library": str(self.allocator.library) if self.allocator.library else None,
            "removed": list(self.removed),
            "warnings": list(self.warnings),
            "notes": list(self.notes),
            "ranks": [
                {"rank": rank.rank, "host": rank.host,
                 **(asdict(rank.place) if rank.place else dict.fromkeys(Place.__dataclass_fields__)),
                 "argv": wrapped(self, rank) if local else None, "environment": rank.environment}
                for rank in self.ranks
            ],
        }


def build_plan(cluster: Cluster, topology: Topology, command: Sequence[str], *, host: str, num_nodes: int | None = None,
               num_ranks: int | None = None, environment: Mapping[str, str] = os.environ) -> Plan:
    """Plan ``command`` as ranks on this machine. ``num_ranks`` (of the world) overrides ``ranks_per_node``.

    Looks for the program and the allocator's library, and changes nothing. Raises ConfigError for a command that
    can not be found or a wish that this launcher can not fulfil, MissingPartError for the library.
    """
    if num_nodes not in (None, 1):
        raise ConfigError(f"--nodes {num_nodes}, but `launcher: local` has one node, this machine",
                          "nothing was started", "leave --nodes out, and set the number of ranks with --ranks")
    size = num_ranks or _ranks_of(cluster, topology)
    _check_size(size)
    mine = own_environment(cluster)
    program = find_program(command[0], mine.get("PATH", environment.get("PATH", os.defpath)))
    base = {**environment, **mine}
    allocator = choose_allocator(cluster.allocator, base)
    placement = place(topology, size, wishes_of(cluster))
    ranks = tuple(
        RankPlan(rank, host, where, rank_environment(
            Seat(rank, size, rank, size, 0, 1, "127.0.0.1", PORT_LATER), where, allocator.name, allocator.library, mine,
            base.get("LD_PRELOAD"), cluster.interface, cluster.elastic))
        for rank, where in enumerate(placement.places))
    return Plan(cluster, (program, *command[1:]), ranks, settled(environment, mine), allocator, placement.warnings,
                placement.notes)


def build_remote_plan(cluster: Cluster, command: Sequence[str], *, num_nodes: int | None = None,
                      num_ranks: int | None = None, environment: Mapping[str, str] = os.environ) -> Plan:
    """Plan ``command`` as ranks on the cluster's hosts, which Slurm may yet have to name.

    Each host's supervisor decides on cores when it sees them; what is shown before follows from `node`. Raises
    ConfigError as `build_plan` does.
    """
    hosts = _hosts(cluster, num_nodes)
    if num_ranks is None:
        counts = [_count_on(cluster, name, ranks, node) for name, ranks, node in hosts]
    else:
        counts = [num_ranks // len(hosts) + (i < num_ranks % len(hosts)) for i in range(len(hosts))]
        hosts, counts = hosts[:num_ranks], counts[:num_ranks]
    size = sum(counts)
    _check_size(size)
    mine = own_environment(cluster)
    program = find_program(command[0], mine.get("PATH", environment.get("PATH", os.defpath)))
    allocator = Allocator(cluster.allocator, None, f"{cluster.allocator}, looked for on each host")
    ranks: list[RankPlan] = []
    warnings: dict[str, None] = {}
    notes: dict[str, None] = {}
    for node, ((name, _, shape), count) in enumerate(zip(hosts, counts, strict=True)):
        places: Sequence[Place | None] = [None] * count
        if shape is not None:
            placement = place(topology_of(shape), count, wishes_of(cluster))
            places = placement.places
            warnings |= dict.fromkeys(placement.warnings)
            notes |= dict.fromkeys(placement.notes)
        for local, where in enumerate(places):
            seat = Seat(len(ranks), size, local, count, node, len(hosts), hosts[0][0], PORT_LATER)
            ranks.append(RankPlan(seat.rank, name, where, rank_environment(
                seat, where, "", None, mine, None, cluster.interface, cluster.elastic)))
    return Plan(cluster, (program, *command[1:]), tuple(ranks), settled(environment, mine), allocator, tuple(warnings),
                tuple(notes))


def _hosts(cluster: Cluster, num_nodes: int | None) -> list[tuple[str, int | None, Node | None]]:
    """(name, ranks, shape) of the hosts to use."""
    wished = num_nodes or cluster.nodes
    if cluster.launcher == "slurm":
        return [(f"(node {number} of Slurm's)", None, cluster.node) for number in range(1, (wished or 1) + 1)]
    return [(name, group.ranks_per_node, group.node or cluster.node) for name, group in named_hosts(cluster, num_nodes)]


def named_hosts(cluster: Cluster, num_nodes: int | None) -> list[tuple[str, HostGroup]]:
    """The cluster file's hosts to use, in order, each with its group. Raises ConfigError for more than there are."""
    wished = num_nodes or cluster.nodes
    known = [(name, group) for group in cluster.groups for name in group.hosts]
    if wished and wished > len(known):
        raise ConfigError(f"{counted(wished, 'node is', 'nodes are')} wished, "
                          f"but the cluster file has {counted(len(known), 'host')}",
                          "nothing was started", "lower --nodes, or add hosts")
    return known[:wished]


def _count_on(cluster: Cluster, name: str, ranks: int | None, node: Node | None) -> int:
    if ranks is not None:
        return ranks
    if cluster.ranks_per_node != "auto":
        return cluster.ranks_per_node
    if node is None:
        raise ConfigError(f"ranks_per_node is auto, but the cluster file does not describe {name}",
                          "nothing was started", "write ranks_per_node: 2, say, or node: with its sockets and cores")
    return _ranks_of(cluster, topology_of(node))


def _ranks_of(cluster: Cluster, topology: Topology) -> int:
    if cluster.ranks_per_node != "auto":
        return cluster.ranks_per_node
    return count_ranks(topology, wishes_of(cluster), cluster.ranks_per_numa_node)


def _check_size(size: int) -> None:
    if size > MAX_RANKS:
        raise ConfigError(f"{size} ranks are more than {MAX_RANKS}", "nothing was started", "check --ranks")


def own_environment(cluster: Cluster) -> dict[str, str]:
    """The cluster file's ``env`` as text."""
    return {name: str(value) for name, value in cluster.env.items()}


def wishes_of(cluster: Cluster) -> Wishes:
    """What the cluster file asks for each rank."""
    return Wishes(cluster.threads_per_rank, cluster.comm_cores, cluster.hyper_threads)


def topology_of(node: Node) -> Topology:
    """The machine that a cluster file describes."""
    return describe(node.sockets, node.numa_per_socket, node.cores_per_socket, node.threads_per_core)


def wrapped(plan: Plan, rank: RankPlan, parent: int | None = None) -> list[str]:
    """The argv that starts one rank: the wrapper that pins it, then the command.

    The rank ends with the process ``parent``, if given.
    """
    assert rank.place is not None
    # -I and -S: nothing of the user's Python environment can break the wrapper, and it starts in 10 ms.
    words = [sys.executable, "-I", "-S", str(WRAPPER), f"--cpus={format_list(rank.place.cpus)}"]
    if rank.place.memory_node is not None:
        words.append(f"--memory-node={rank.place.memory_node}")
    if parent is not None:
        words.append(f"--parent={parent}")
    return [*words, "--", *plan.command]


def find_program(word: str, path: str) -> str:
    """The absolute path of a command's first word: on PATH, or beside the running Python. Raises ConfigError."""
    if "\0" in word or not word:
        raise ConfigError(f"{word!r} is no command", "nothing was started", "write a command after --")
    if "/" in word:
        file = Path(word)
        if file.is_file() and os.access(file, os.X_OK):
            return str(file.absolute())
        what = "is a folder" if file.is_dir() else "is not executable" if file.exists() else "does not exist"
        raise ConfigError(f"the command {word} {what}", "nothing was started",
                          "check its path" if not file.is_file() else
                          "make it so with chmod +x, or name its interpreter before it")
    found = shutil.which(word, path=path) or shutil.which(word, path=str(Path(sys.executable).parent))
    if not found:
        raise ConfigError(f"the command {word!r} is neither on PATH nor beside {sys.executable}", "nothing was started",
                          "check its name, or give its path")
    return str(Path(found).absolute())
