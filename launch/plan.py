"""What will run where: hosts, ranks, cores, environment and argv, decided before anything starts."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from distrib.errors import ConfigError
from launch.allocator import Allocator, choose_allocator
from launch.cluster import Cluster
from launch.placement import Place, Wishes, count_ranks, place
from launch.settings import removed_names, settings_for
from launch.topology import Topology, format_list

PORT_LATER = "(a free port, chosen at the start)"
MAX_RANKS = 65536
WRAPPER = Path(__file__).with_name("rank.py")


@dataclass(frozen=True)
class RankPlan:
    """One rank."""

    rank: int
    host: str
    place: Place
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

    def with_port(self, port: int) -> Plan:
        """The plan with the port where ranks meet."""
        return replace(self, ranks=tuple(
            replace(rank, environment={**rank.environment, "MASTER_PORT": str(port)}) for rank in self.ranks))

    def to_json(self) -> dict[str, Any]:
        """Plain values, for ``launch plan --json``."""
        return {
            "cluster": self.cluster.model_dump(mode="json"),
            "command": list(self.command),
            "allocator": self.allocator.name,
            "library": str(self.allocator.library) if self.allocator.library else None,
            "removed": list(self.removed),
            "warnings": list(self.warnings),
            "notes": list(self.notes),
            "ranks": [
                {"rank": rank.rank, "host": rank.host, **asdict(rank.place), "argv": wrapped(self, rank),
                 "environment": rank.environment}
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
    wished = num_ranks or cluster.ranks_per_node
    wishes = Wishes(cluster.threads_per_rank, cluster.comm_cores, cluster.hyper_threads)
    size = count_ranks(topology, wishes, cluster.ranks_per_numa_node) if wished == "auto" else wished
    if size > MAX_RANKS:
        raise ConfigError(f"{size} ranks are more than {MAX_RANKS}", "nothing was started", "check --ranks")
    mine = {name: str(value) for name, value in cluster.env.items()}
    program = find_program(command[0], mine.get("PATH", environment.get("PATH", os.defpath)))
    base = {**environment, **mine}
    allocator = choose_allocator(cluster.allocator, base)
    placement = place(topology, size, wishes)
    ranks = []
    for rank, where in enumerate(placement.places):
        values = {**settings_for(where.threads, allocator.name), **mine}
        if allocator.library:
            values["LD_PRELOAD"] = ":".join(filter(None, (str(allocator.library), base.get("LD_PRELOAD"))))
        # torchrun's names, which torch and most training scripts read.
        values |= {
            "RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(size),
            "GROUP_RANK": "0", "GROUP_WORLD_SIZE": "1", "ROLE_NAME": "default", "ROLE_RANK": str(rank),
            "ROLE_WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": PORT_LATER,
        }
        ranks.append(RankPlan(rank, host, where, values))
    removed = tuple(name for name in removed_names(environment) if name not in mine)
    return Plan(cluster, (program, *command[1:]), tuple(ranks), removed, allocator, placement.warnings, placement.notes)


def wrapped(plan: Plan, rank: RankPlan, parent: int | None = None) -> list[str]:
    """The argv that starts one rank: the wrapper that pins it, then the command.

    The rank ends with the process ``parent``, if given.
    """
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
