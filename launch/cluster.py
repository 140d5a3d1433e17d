"""The cluster file: where and how ranks are started."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from distrib.documents import Section, apply_overrides, read_yaml, validate
from distrib.errors import printable
from launch.hosts import MAX_HOSTS, count, expand

LAUNCHERS = {"local": "launch.local", "mpirun": "launch.mpirun", "slurm": "launch.slurm"}
"""Ways to start ranks: name -> module, imported on use. Each has ``run_plan(plan, options)`` and ``run_job(folder)``,
which give exit codes, and those for other hosts ``plan_commands(plan)``."""

OWN_NAMES = frozenset({
    "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE", "ROLE_NAME", "ROLE_RANK",
    "ROLE_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_ERROR_FILE", "TORCHELASTIC_RESTART_COUNT",
    "LAUNCH_ELASTIC", "LAUNCH_JOIN",
})
"""Environment names that say which rank a process is; only the launcher sets them."""


def _known_launcher(name: str) -> str:
    if name not in LAUNCHERS:
        raise ValueError(f"no such launcher; there is {', '.join(LAUNCHERS)}")
    return name


def _printable(text: str) -> str:
    if not text.strip() or not text.isprintable():
        raise ValueError("must be text on one line")
    return text


def _no_truth(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("write in quotes what the variable should hold")  # is it 1, true or True?
    return value


def _environment(values: dict[str, str | int | float]) -> dict[str, str | int | float]:
    for name, value in values.items():
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise ValueError(f"{name!r} is no name of an environment variable")
        if name in OWN_NAMES:
            raise ValueError(f"the launcher itself sets {name}, for each rank")
        if "\0" in str(value):
            raise ValueError(f"{name} holds a zero byte")
    return values


def _host_list(names: list[str]) -> list[str]:
    if sum(map(count, names)) > MAX_HOSTS:
        raise ValueError(f"there are more than {MAX_HOSTS} hosts")
    hosts = [host for name in names for host in expand(name)]
    seen: set[str] = set()
    for host in hosts:
        if host in seen:
            raise ValueError(f"the host {host} stands twice")
        seen.add(host)
    return hosts


def _few_hosts(items: object) -> object:
    """Refuses too many before each group names its own; whether they are names at all is seen later."""
    groups = [item.get("hosts") if isinstance(item, dict) else [item]
              for item in (items if isinstance(items, list) else [])]
    names = [name for group in groups if isinstance(group, list) for name in group if isinstance(name, str)]
    if sum(map(count, names)) > MAX_HOSTS:
        raise ValueError(f"there are more than {MAX_HOSTS} hosts")
    return items


def _options(words: list[str]) -> list[str]:
    for word in words:
        if not word.startswith("-") or not word.isprintable():
            raise ValueError(f"{word!r} is no option; write each as one word, such as --name=value")
    return words


Value = Annotated[str | int | float, BeforeValidator(_no_truth)]
Hosts = Annotated[list[str], AfterValidator(_host_list)]
Line = Annotated[str, AfterValidator(_printable)]
Word = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.:,@+%/-]*$")]
Words = Annotated[list[str], AfterValidator(_options)]
Ranks = Annotated[int, Field(ge=1, le=4096)]
Count = Annotated[int, Field(ge=1, le=4096)]


class Node(Section):
    """What one machine is. With it a login node can plan for others, and the doctor compares."""

    sockets: Count = 1
    """Processors."""
    numa_per_socket: Count = 1
    """NUMA nodes of a socket; more than 1 with sub-NUMA clustering."""
    cores_per_socket: Count
    """Physical cores of a socket."""
    threads_per_core: Count = 1
    """Hardware threads of a core."""


class HostGroup(Section):
    """Hosts that differ from the others."""

    hosts: Hosts
    """Their names; node[01-16] means sixteen."""
    ranks_per_node: Ranks | None = None
    """By default the cluster's."""
    node: Node | None = None
    """By default the cluster's."""


class Mpirun(Section):
    """What concerns ``launcher: mpirun`` alone."""

    program: Line = "mpirun"
    """A name on PATH, or a path. Which MPI it belongs to is found out by asking it."""
    options: Words = Field(default_factory=list)
    """More options of that mpirun, each one word."""
    ssh: bool = True
    """Whether mpirun reaches hosts by ssh. Then they are asked by ssh first, which tells clearly what is wrong."""


class Slurm(Section):
    """What concerns ``launcher: slurm`` alone."""

    partition: Word | None = None
    """As for sbatch; so are the next three."""
    account: Word | None = None
    """Who pays."""
    qos: Word | None = None
    """Quality of service."""
    constraint: Annotated[str, Field(pattern=r"^[A-Za-z0-9_&|*()\[\],.-]+$")] | None = None
    """Features that nodes must have."""
    time: Annotated[str, Field(pattern=r"^(\d+-)?\d+(:\d\d){0,2}$")] | None = None
    """Limit of the whole job, as Slurm writes it: minutes, h:mm:ss or days-hh:mm:ss. In quotes."""
    exclusive: bool = True
    """Whole nodes."""
    spares: Annotated[int, Field(ge=0, le=1024)] = 0
    """Nodes asked for beyond those that compute; each stands in for one that dies."""
    requeue: bool = True
    """After preemption, a node's failure or the time limit, the same job waits and goes on."""
    stop_signal_s: Annotated[int, Field(ge=10, le=65535)] = 120
    """Seconds before the time limit at which ranks are told to save; more than stop_grace_s."""
    options: Words = Field(default_factory=list)
    """More options of sbatch, each one word."""


class Cluster(Section):
    """One cluster file; every key may be left out."""

    name: Line = "cluster"
    """What the cluster is called in messages; by default as its file."""
    launcher: Annotated[str, AfterValidator(_known_launcher)] = "local"
    """How ranks are started. local: on this machine; mpirun: by Open MPI, MPICH or Intel MPI; slurm: by Slurm."""
    hosts: Annotated[list[str | HostGroup], BeforeValidator(_few_hosts), Field(max_length=4096)] = Field(
        default_factory=list)
    """For mpirun: the machines, in the order in which they are taken: names (node[01-16] means sixteen), or sections
    for those that differ. Slurm chooses its own."""
    nodes: Annotated[int, Field(ge=1, le=65536)] | None = None
    """Machines to use unless --nodes says otherwise; by default all hosts, and one under Slurm."""
    node: Node | None = None
    """What each machine is; by default, for the local launcher, what this one is."""
    ranks_per_node: Ranks | Literal["auto"] = "auto"
    """auto: one rank for each NUMA node, or as many as have threads_per_rank cores each, where that is given."""
    ranks_per_numa_node: Ranks | None = None
    """Instead of ranks_per_node."""
    threads_per_rank: Annotated[int, Field(ge=1, le=4096)] | None = None
    """Threads a rank computes with (OMP_NUM_THREADS); by default as many as it has physical cores."""
    comm_cores: Annotated[int, Field(ge=0, le=64)] = 0
    """Cores of each rank that compute nothing, for the threads that communicate (oneCCL's)."""
    hyper_threads: bool = False
    """Whether to compute on all hardware threads of a core; they share its multipliers and seldom gain."""
    interface: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.:@-]{0,14}$")] | None = None
    """Network interface of the ranks' sums; by default the one that leads to rank 0."""
    allocator: Literal["auto", "tcmalloc", "jemalloc", "system"] = "auto"
    """The malloc of the ranks. auto: tcmalloc where it is installed, else the system's."""
    env: Annotated[dict[str, Value], AfterValidator(_environment)] = Field(default_factory=dict)
    """Environment of every rank, over what the launcher and the shell set."""
    start_s: Annotated[float, Field(ge=1, le=86400)] = 120.0
    """Seconds until the ranks of every host must have started."""
    grace_s: Annotated[float, Field(ge=0, le=3600)] = 10.0
    """Seconds between SIGTERM and SIGKILL for the other ranks, when one has failed."""
    stop_grace_s: Annotated[float, Field(ge=0, le=86400)] = 60.0
    """Seconds that ranks have to save and end after Ctrl-C or SIGTERM, before SIGKILL."""
    elastic: bool = False
    """Whether the others go on when a rank is lost. For commands that can, as `distrib train` does."""
    restarts: Annotated[int, Field(ge=0, le=1000)] = 0
    """Times in a row that a job is started again that was killed or lost a host; not one that had bad input."""
    restart_wait_s: Annotated[float, Field(ge=0, le=3600)] = 5.0
    """Seconds before the first restart; twice as long before each further one, up to 300."""
    mpirun: Mpirun = Mpirun()
    slurm: Slurm = Slurm()

    @model_validator(mode="after")
    def _together(self) -> Cluster:
        if self.ranks_per_numa_node is not None and self.ranks_per_node != "auto":
            raise ValueError("ranks_per_node and ranks_per_numa_node exclude each other")
        if self.launcher == "mpirun" and not self.hosts:
            raise ValueError("launcher: mpirun needs hosts, such as [node1, node2]")
        if self.launcher != "mpirun" and self.hosts:
            raise ValueError(f"hosts are for launcher: mpirun; {self.launcher} "
                             + ("is this machine alone" if self.launcher == "local" else
                                "chooses its own (slurm.options takes --nodelist=...)"))
        if self.launcher == "local" and (self.nodes or 1) > 1:
            raise ValueError("nodes: launcher: local has one node, this machine")
        if self.launcher == "slurm" and self.stop_grace_s >= self.slurm.stop_signal_s:
            raise ValueError(f"stop_grace_s ({self.stop_grace_s:g}) must be less than slurm.stop_signal_s "
                             f"({self.slurm.stop_signal_s}): the time limit would end ranks that still save")
        _host_list([name for item in self.hosts for name in ([item] if isinstance(item, str) else item.hosts)])
        return self

    @property
    def groups(self) -> list[HostGroup]:
        """All hosts, with what differs from host to host."""
        return [group if isinstance(group, HostGroup) else HostGroup(hosts=[group]) for group in self.hosts]


def load_cluster(path: Path, overrides: Sequence[str] = ()) -> Cluster:
    """Read a cluster file and apply ``key=value`` overrides. Raises ConfigError."""
    document = {"name": printable(path.stem), **read_yaml(path, "cluster file")}
    return validate(Cluster, apply_overrides(document, overrides), f"the cluster file {path}")
