"""What the doctor knows of each node: read on the node itself, and from what its probe has left."""

from __future__ import annotations

import json
import os
import platform
import re
import resource
import shutil
import socket
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, Field

from distrib.documents import Section, validate
from distrib.errors import DistribError
from launch.machine import read_machine
from launch.topology import read_text

MAX_BYTES = 1 << 24


class _Facts(Section):
    # Of another version of this package, perhaps: it is judged by what is known of it.
    model_config = ConfigDict(extra="ignore")


class Machine(_Facts):
    """A node as its kernel describes it."""

    host: str
    kernel: str
    python: str
    processor: str
    instruction_sets: tuple[str, ...]
    sockets: int
    numa_nodes: int
    cores: int
    """Physical cores that the job may use."""
    cpus: int
    """Hardware threads that the job may use."""
    machine_cpus: int
    """Hardware threads of the machine."""
    quota: float | None
    """CPU seconds a second, where that is less than the CPUs."""
    governor: str | None
    """Of the processor's frequency; several are joined. None: the kernel tells none, as in a virtual machine."""
    driver: str | None
    max_mhz: int | None
    memory_bytes: int
    free_bytes: int
    """Memory that programs could have."""
    shm_bytes: int | None
    """Size of /dev/shm."""
    disk_bytes: int
    """Free in the job's folder."""
    limits: dict[str, int]
    """Soft limits of open files, locked memory (bytes) and processes; -1: none."""
    rdma: bool
    """Whether it has an InfiniBand or RoCE device."""
    speeds: dict[str, int]
    """Of the real network interfaces that are up and tell it: Mbit/s."""


class Compute(_Facts):
    """How fast it computes. See distrib/probe/compute.py."""

    threads: float
    share: float
    idle_cores: float
    stolen_cores: float
    fp32: float
    bf16: float
    memory: float
    fp32_undisturbed: float | None
    bf16_undisturbed: float | None
    memory_undisturbed: float | None


class Link(_Facts):
    """What one end knows of the link to another node; latency and clocks are measured by the end of lower rank."""

    latency_s: float | None = None
    ahead_s: float | None = None
    """By so much the other's clock is ahead."""
    clock_error_s: float | None = None
    received: float | None = None
    """Bytes a second."""
    waited: float | None = None
    """Part of the time in which this end waited for a processor: then the link is not to blame."""
    error: str | None = None


class AllReduce(_Facts):
    """The sum over all nodes at once."""

    bytes: int
    seconds: float
    bandwidth: float
    """Bytes a second that each node sent, at the least."""
    small_s: float
    """Seconds for two numbers."""
    backend: str
    why: str


class Probe(_Facts):
    """What a probe found; what it did not get to is None."""

    host: str = ""
    error: str | None = None
    boot: str = ""
    """The same for nodes that are containers or namespaces of one machine; empty if unknown."""
    finished: bool = False
    versions: dict[str, str | None] = Field(default_factory=dict)
    own_name: tuple[str, ...] | None = None
    """Addresses that the node's own name means there."""
    addresses: tuple[str, ...] = ()
    """Of its interfaces, but for loopback."""
    address: str | None = None
    """Over which it talked with the others."""
    interface: str | None = None
    absent: tuple[int, ...] = ()
    unseen: tuple[int, ...] | None = None
    """Ranks whose file it did not see in the shared folder."""
    resolved: dict[int, tuple[str, ...]] = Field(default_factory=dict)
    """What the launcher's name of each other rank's host means there."""
    compute: Compute | None = None
    links: dict[int, Link] = Field(default_factory=dict)
    all_reduce: AllReduce | None = None
    all_reduce_error: str | None = None


class Node(_Facts):
    """One rank of the doctor's job."""

    name: str
    """As the cluster file or Slurm calls it."""
    machine: Machine | None = None
    probe: Probe | None = None


def read_node(folder: Path, rank: int, name: str | None) -> Node:
    """What one rank has left in the folder; nothing if it has left nothing, or nothing that can be read."""
    machine = _read(folder / f"machine-{rank}.json", Machine)
    probe = _read(folder / f"probe-{rank}.json", Probe)
    host = name or (machine.host if machine else probe.host if probe else "")
    return Node(name=host or f"rank {rank}", machine=machine, probe=probe)


def _read(path: Path, kind: type[Any]) -> Any:
    try:
        with path.open("rb") as file:
            return validate(kind, json.loads(file.read(MAX_BYTES)), str(path))
    except (OSError, ValueError, RecursionError, DistribError):
        return None


def examine_machine(folder: Path, root: Path = Path("/")) -> Machine:
    """This node, and the folder of the job; local."""
    before = os.sched_getaffinity(0)
    # A rank is tied to some of its node's CPUs; the kernel grants all that the job may use.
    os.sched_setaffinity(0, range(os.cpu_count() or 1))
    try:
        found = read_machine(root)
    finally:
        os.sched_setaffinity(0, before)
    topology = found.topology
    free = _free(read_text(root / "proc/meminfo"))
    system = root / "sys/devices/system/cpu"
    governors = {read_text(system / f"cpu{cpu}/cpufreq/scaling_governor") for cpu in topology.cpus} - {""}
    first = system / f"cpu{topology.cpus[0]}/cpufreq"
    return Machine(
        host=socket.gethostname(), kernel=platform.release(), python=platform.python_version(),
        processor=found.model or platform.machine(), instruction_sets=found.instruction_sets,
        sockets=len({core.socket for core in topology.cores}), numa_nodes=len(topology.nodes),
        cores=len(topology.cores), cpus=len(topology.cpus), machine_cpus=topology.machine_cpus, quota=topology.quota,
        governor=", ".join(sorted(governors)) or None, driver=read_text(first / "scaling_driver") or None,
        max_mhz=_kilo(read_text(first / "cpuinfo_max_freq")),
        memory_bytes=min(found.memory_bytes, found.memory_limit_bytes or found.memory_bytes),
        free_bytes=min(free, found.memory_limit_bytes or free),
        shm_bytes=_total(root / "dev/shm"), disk_bytes=shutil.disk_usage(folder).free,
        limits={name: resource.getrlimit(number)[0] for name, number in (
            ("nofile", resource.RLIMIT_NOFILE), ("memlock", resource.RLIMIT_MEMLOCK),
            ("nproc", resource.RLIMIT_NPROC))},
        rdma=any((root / "sys/class/infiniband").glob("*")), speeds=_speeds(root / "sys/class/net"),
    )


def _free(meminfo: str) -> int:
    found = re.search(r"^MemAvailable:\s*(\d+) kB$", meminfo, re.MULTILINE)
    return int(found[1]) << 10 if found else 0


def _speeds(interfaces: Path) -> dict[str, int]:
    # A virtual interface has no device, and tells a speed that it made up.
    found = {path.parent.name: read_text(path.parent / "speed") for path in sorted(interfaces.glob("*/device"))}
    return {name: int(speed) for name, speed in found.items() if speed.isdigit() and int(speed) > 0}


def _kilo(text: str) -> int | None:
    return int(text) // 1000 if text.isdigit() else None


def _total(path: Path) -> int | None:
    try:
        return shutil.disk_usage(path).total
    except OSError:
        return None
