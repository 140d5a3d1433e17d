"""All that a machine tells of itself: processor, caches, memory, network interfaces, and the limits set on a process.

Read from the kernel's files below a root that tests replace, and for the real machine from psutil where these are
silent. For people and reports: what placement needs of it is in launch.topology.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from launch.topology import Topology, control_groups, format_list, parse_list, read_numbers, read_text, read_topology

INSTRUCTION_SETS = (
    "avx2", "avx_vnni", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16", "avx512_fp16", "avx10_1", "avx10_2",
    "amx_tile", "amx_int8", "amx_bf16", "amx_fp16",
    "asimd", "asimddp", "sve", "sve2", "sme", "bf16", "i8mm", "svebf16",
)
"""Those that training and inference gain from, by the kernel's names on x86 and Arm."""
KINDS = {1: "ethernet", 32: "infiniband", 772: "loopback"}
"""Of the kernel's numbers for network hardware (ARPHRD)."""


@dataclass(frozen=True)
class Cache:
    """One cache of the machine, with the CPUs of this process that share it."""

    level: int
    kind: str
    """data, instruction or unified"""
    bytes: int
    cpus: tuple[int, ...]


@dataclass(frozen=True)
class Memory:
    """One NUMA node's memory."""

    node: int
    bytes: int
    cpus: tuple[int, ...]
    """All hardware threads of the node; none where it is memory alone, such as HBM or CXL."""
    usable: bool
    """Whether this process may take memory from it."""


@dataclass(frozen=True)
class Interface:
    """A network interface, or a port of an RDMA device (``mlx5_0/1``)."""

    name: str
    kind: str
    """ethernet, infiniband, loopback, rdma or other"""
    up: bool
    mbit: int | None
    """Mbit/s of the link; None where it is down, or nothing is told, as in many virtual machines."""
    node: int | None
    """The NUMA node it is nearest to; None if it is near none, or that is not told."""
    addresses: tuple[str, ...] = ()
    """IP addresses; only of the real machine."""


@dataclass(frozen=True)
class Machine:
    """A machine as one process sees it."""

    model: str
    """The processor's name; empty where it is not told."""
    instruction_sets: tuple[str, ...]
    """Of INSTRUCTION_SETS, in that order."""
    topology: Topology
    """The part that the process may use, and its CPU quota."""
    caches: tuple[Cache, ...]
    """Of usable CPUs, by level, kind and first CPU."""
    memory: tuple[Memory, ...]
    memory_bytes: int
    """Of the whole machine; 0 where it is not told."""
    memory_limit_bytes: int | None
    """What a container or job may take, where that is less."""
    interfaces: tuple[Interface, ...]

    @property
    def bf16(self) -> bool:
        """Whether the processor multiplies bfloat16 itself."""
        return bool({"avx512_bf16", "amx_bf16", "bf16", "svebf16"} & set(self.instruction_sets))

    @property
    def amx(self) -> bool:
        """Whether it has tiles (AMX) for bfloat16."""
        return "amx_bf16" in self.instruction_sets

    def to_json(self) -> dict[str, Any]:
        """Plain values; CPUs as the kernel's lists."""
        cores = self.topology.cores
        return {
            "model": self.model,
            "instruction_sets": list(self.instruction_sets),
            "bf16": self.bf16,
            "amx": self.amx,
            "num_sockets": len({core.socket for core in cores}),
            "num_numa_nodes": len(self.topology.nodes),
            "num_cores": len(cores),
            "cpus": format_list(self.topology.cpus),
            "machine_cpus": self.topology.machine_cpus,
            "quota_cpus": self.topology.quota,
            "cores": [{**asdict(core), "cpus": format_list(core.cpus)} for core in cores],
            "caches": [{**asdict(cache), "cpus": format_list(cache.cpus)} for cache in self.caches],
            "memory": [{**asdict(memory), "cpus": format_list(memory.cpus)} for memory in self.memory],
            "memory_nearest": {str(node): nearest for node, nearest in self.topology.memory_nearest.items()},
            "memory_bytes": self.memory_bytes,
            "memory_limit_bytes": self.memory_limit_bytes,
            "interfaces": [{**asdict(each), "addresses": list(each.addresses)} for each in self.interfaces],
        }


def read_machine(root: Path = Path("/"), allowed: Iterable[int] | None = None) -> Machine:
    """The machine whose /sys and /proc are below ``root``; local.

    ``allowed`` are the CPUs that may be used; by default those that the process of ``root``'s /proc/self may.
    Raises WorldError if there are none.
    """
    status = _pairs(read_text(root / "proc/self/status"))
    if allowed is None and root != Path("/"):
        allowed = parse_list(status.get("Cpus_allowed_list", "")) or None
    topology = read_topology(root, allowed)
    processor = _pairs(read_text(root / "proc/cpuinfo").partition("\n\n")[0])
    flags = set((processor.get("flags") or processor.get("Features", "")).split())
    total = _kilobytes(_pairs(read_text(root / "proc/meminfo")).get("MemTotal", ""))
    interfaces = _interfaces(root)
    if root == Path("/"):
        total, interfaces = _ask_psutil(total, interfaces)
    return Machine(
        processor.get("model name", ""), tuple(name for name in INSTRUCTION_SETS if name in flags), topology,
        _caches(root, topology), _memory(root, status.get("Mems_allowed_list")), total,
        _memory_limit(root, total), (*interfaces, *_rdma_ports(root)),
    )


def _caches(root: Path, topology: Topology) -> tuple[Cache, ...]:
    usable = set(topology.cpus)
    found = set()
    for core in topology.cores:
        for index in (root / f"sys/devices/system/cpu/cpu{core.cpus[0]}/cache").glob("index*"):
            cpus = usable & set(read_numbers(index / "shared_cpu_list")) or set(core.cpus)
            size = re.fullmatch(r"(\d+)([KMG]?)", read_text(index / "size"))
            if size:
                found.add(Cache(_integer(index / "level") or 0, read_text(index / "type").lower(),
                                int(size[1]) << 10 * " KMG".index(size[2] or " "), tuple(sorted(cpus))))
    return tuple(sorted(found, key=lambda cache: (cache.level, cache.kind, cache.cpus)))


def _memory(root: Path, allowed: str | None) -> tuple[Memory, ...]:
    system = root / "sys/devices/system/node"
    usable = None if allowed is None else set(parse_list(allowed))
    found = []
    for node in read_numbers(system / "online"):
        told = re.search(r"MemTotal:\s*(\d+) kB", read_text(system / f"node{node}/meminfo"))
        size = int(told[1]) << 10 if told else 0
        found.append(Memory(node, size, read_numbers(system / f"node{node}/cpulist"),
                            size > 0 and (usable is None or node in usable)))
    return tuple(found)


def _memory_limit(root: Path, total: int) -> int | None:
    """The tightest limit of the control groups (version 2 or 1), if it is less than the machine has."""
    limits = [_integer(group / name) for group in control_groups(root, "memory")
              for name in ("memory.max", "memory.limit_in_bytes")]
    least = min((limit for limit in limits if limit is not None), default=None)
    return least if least is not None and (not total or least < total) else None


def _interfaces(root: Path) -> tuple[Interface, ...]:
    found = []
    for folder in sorted((root / "sys/class/net").glob("*")):
        kind = KINDS.get(_integer(folder / "type") or 0, "other")
        if not (folder / "type").exists():  # such as bonding_masters, a file
            continue
        up = read_text(folder / "operstate") in ("up", "unknown")  # lo and tunnels do not know
        mbit = _integer(folder / "speed") or 0
        found.append(Interface(folder.name, kind, up, mbit if up and mbit > 0 else None, _node(folder)))
    return tuple(found)


def _rdma_ports(root: Path) -> tuple[Interface, ...]:
    found = []
    for port in sorted((root / "sys/class/infiniband").glob("*/ports/*")):
        device = port.parents[1]
        rate = re.match(r"([\d.]+) Gb/sec", read_text(port / "rate"))
        up = "ACTIVE" in read_text(port / "state")
        found.append(Interface(f"{device.name}/{port.name}", "rdma", up,
                               round(float(rate[1]) * 1000) if rate and up else None, _node(device)))
    return tuple(found)


def _ask_psutil(total: int, interfaces: tuple[Interface, ...]) -> tuple[int, tuple[Interface, ...]]:
    """Fill in what the files did not tell of the real machine."""
    import socket

    import psutil

    try:
        addresses, links = psutil.net_if_addrs(), psutil.net_if_stats()
    except OSError:  # forbidden in some containers
        return total or psutil.virtual_memory().total, interfaces
    by_name = {each.name: each for each in interfaces}
    for name, link in links.items():
        known = by_name.get(name) or Interface(name, "other", link.isup, None, None)
        here = (each.address.partition("%")[0] for each in addresses.get(name, ())
                if each.family in (socket.AF_INET, socket.AF_INET6))
        # psutil says 0 where nothing is told, and 65535 where the kernel says that it does not know.
        speed = link.speed if link.isup and 0 < link.speed < 65535 else None
        by_name[name] = replace(known, mbit=known.mbit or speed, addresses=tuple(here))
    return total or psutil.virtual_memory().total, tuple(by_name[name] for name in sorted(by_name))


def _node(folder: Path) -> int | None:
    node = _integer(folder / "device/numa_node")
    return node if node is not None and node >= 0 else None


def _pairs(text: str) -> Mapping[str, str]:
    """The lines ``name: value``; of equal names the first."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        name, _, value = line.partition(":")
        found.setdefault(name.strip(), value.strip())
    return found


def _kilobytes(text: str) -> int:
    number = text.partition(" ")[0]
    return int(number) << 10 if number.isdigit() else 0


def _integer(path: Path) -> int | None:
    try:
        return int(read_text(path))
    except ValueError:
        return None
