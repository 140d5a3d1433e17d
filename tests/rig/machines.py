"""Machines made of files: the part of /sys and /proc that tells a machine's shape, numbered as real kernels do."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Literal

from launch.topology import format_list, parse_list

INTEL = "fpu sse2 avx2 avx512f avx512_vnni avx512_bf16 amx_bf16 amx_tile amx_int8"
AMD = "fpu sse2 avx2 avx512f avx512_vnni avx512_bf16"
GB = 1 << 30


@dataclass(frozen=True)
class Net:
    """A network interface; ``mbit`` None: down."""

    name: str
    mbit: int | None
    node: int = 0
    type: int = 1


@dataclass(frozen=True)
class Shape:
    """A machine, and what its kernel lets one process have of it."""

    sockets: int = 1
    numa_per_socket: int = 1
    cores_per_socket: int = 2
    threads_per_core: int = 1
    caches_per_socket: int | None = None
    """L3s; by default one for each NUMA node."""
    numbering: Literal["blocks", "clusters", "round", "adjacent"] = "blocks"
    """blocks: through all cores, then through second threads (Intel, AMD). clusters: so, but within a socket in turn
    two of each sub-NUMA cluster. round: one of each NUMA node in turn. adjacent: siblings follow each other."""
    memory_gb: int = 64
    """Of each NUMA node."""
    without_memory: tuple[int, ...] = ()
    memory_only_gb: tuple[int, ...] = ()
    """Further NUMA nodes, without cores."""
    nets: tuple[Net, ...] = ()
    rdma: tuple[tuple[str, int], ...] = ()
    """RDMA devices with their Gb/s."""
    flags: str = INTEL
    allowed: str = ""
    """CPUs that the process may use; by default all."""
    memory_nodes: str = ""
    """NUMA nodes whose memory it may use; by default all."""
    cpu_max: str = ""
    memory_max: str = ""

    @property
    def cores(self) -> list[tuple[int, int, int]]:
        """(socket, node, L3) of every core, in the order of its first CPU's number."""
        size, caches = self.cores_per_socket, self.caches_per_socket or self.numa_per_socket
        by_node: dict[int, list[tuple[int, int, int]]] = {}
        for socket in range(self.sockets):
            for core in range(size):
                node = socket * self.numa_per_socket + core * self.numa_per_socket // size
                by_node.setdefault(node, []).append((socket, node, socket * caches + core * caches // size))
        if self.numbering == "clusters":
            nodes = list(by_node.values())
            return [core for first in range(0, len(nodes), self.numa_per_socket)
                    for core in _in_turn(nodes[first:first + self.numa_per_socket], 2)]
        return _in_turn(list(by_node.values()), 1 if self.numbering == "round" else size)

    def cpus(self, core: int) -> tuple[int, ...]:
        """The hardware threads of a core, numbered as in ``cores``."""
        if self.numbering == "adjacent":
            return tuple(core * self.threads_per_core + thread for thread in range(self.threads_per_core))
        return tuple(core + thread * len(self.cores) for thread in range(self.threads_per_core))

    @property
    def usable(self) -> tuple[int, ...]:
        return parse_list(self.allowed) or tuple(range(self.sockets * self.cores_per_socket * self.threads_per_core))


_DUAL = Shape(sockets=2, cores_per_socket=16, threads_per_core=2, memory_gb=256,
              nets=(Net("lo", -1, -1, 772), Net("eth0", 25000), Net("ib0", 100000, 1, 32), Net("eth1", None)),
              rdma=(("mlx5_0", 100),))
SHAPES = {
    "two sockets": _DUAL,
    "sub-NUMA clusters": replace(_DUAL, numa_per_socket=2, cores_per_socket=10, numbering="clusters"),
    "one node in turn": replace(_DUAL, numbering="round"),
    "memory without cores": replace(_DUAL, memory_only_gb=(512,)),
    "a node without memory": replace(_DUAL, numa_per_socket=2, without_memory=(1,)),
    "many L3s": Shape(sockets=2, cores_per_socket=32, threads_per_core=2, caches_per_socket=8, flags=AMD),
    "small VM": Shape(memory_gb=8, flags=AMD, nets=(Net("eth0", -1, -1),)),
    "siblings adjacent": Shape(cores_per_socket=4, threads_per_core=2, numbering="adjacent"),
    "half a node under Slurm": replace(_DUAL, allowed="16-31,48-63", memory_nodes="1", memory_max=str(250 * GB)),
    "container of 1.5 CPUs": Shape(cores_per_socket=8, threads_per_core=2, cpu_max="150000 100000",
                                   memory_max=str(4 * GB)),
}
"""Machines as one meets them."""


def build(root: Path, shape: Shape) -> Path:
    """Write the files of ``shape`` below ``root``, and return it."""
    cores = [(shape.cpus(number), *where) for number, where in enumerate(shape.cores)]
    everything = [cpu for cpus, *_ in cores for cpu in cpus]
    num_cpus = len(everything)
    num_nodes = shape.sockets * shape.numa_per_socket
    files: dict[str, str] = {}
    links: dict[str, str] = {}  # to what holds the same: ten times fewer files to make
    for name in ("online", "possible", "present"):
        files[f"cpu/{name}"] = format_list(everything)
    for number, (cpus, socket, _, cache) in enumerate(cores):
        package = [cpu for others, where, *_ in cores if where == socket for cpu in others]
        sharing = [cpu for others, *_, where in cores if where == cache for cpu in others]
        folder = f"cpu/cpu{cpus[0]}"
        files |= {f"{folder}/topology/physical_package_id": str(socket), f"{folder}/topology/core_id": str(number),
                  **_set(f"{folder}/topology/thread_siblings", cpus, num_cpus, "_list"),
                  **_set(f"{folder}/topology/core_siblings", package, num_cpus, "_list")}
        for index, level, kind, size, group in ((0, 1, "Data", 48, cpus), (2, 2, "Unified", 2048, cpus),
                                                (3, 3, "Unified", 32768, sharing)):
            if group[0] == cpus[0]:
                files |= {f"{folder}/cache/index{index}/level": str(level), f"{folder}/cache/index{index}/type": kind,
                          f"{folder}/cache/index{index}/size": f"{size}K",
                          **_set(f"{folder}/cache/index{index}/shared_cpu", group, num_cpus, "_list", "_map")}
            else:
                links[f"{folder}/cache/index{index}"] = f"../../cpu{group[0]}/cache/index{index}"
        links |= {f"cpu/cpu{cpu}": f"cpu{cpus[0]}" for cpu in cpus[1:]}
    sizes = [0 if node in shape.without_memory else shape.memory_gb for node in range(num_nodes)]
    sizes += shape.memory_only_gb
    for node, size in enumerate(sizes):
        near = [cpu for cpus, _, where, _ in cores if where == node for cpu in cpus]
        files |= _set(f"node/node{node}/cpu", near, num_cpus, "list", "map")
        files[f"node/node{node}/meminfo"] = f"Node {node} MemTotal: {size << 20} kB"
        files[f"node/node{node}/distance"] = " ".join(
            str(10 if other == node else 28 if max(other, node) >= num_nodes else
                12 if other // shape.numa_per_socket == node // shape.numa_per_socket else 21)
            for other in range(len(sizes)))
    files["node/online"] = files["node/possible"] = format_list(range(len(sizes)))
    files["node/has_memory"] = format_list(node for node, size in enumerate(sizes) if size)
    files["node/has_cpu"] = format_list(range(num_nodes))
    write(root / "sys/devices/system", files)
    for name, target in links.items():
        (root / "sys/devices/system" / name).symlink_to(target)
    write(root / "sys/class", _interfaces(shape))
    write(root, {
        "proc/self/status": f"Name:\tx\nCpus_allowed_list:\t{format_list(shape.usable)}\n"
                            f"Mems_allowed_list:\t{shape.memory_nodes or format_list(range(len(sizes)))}",
        "proc/meminfo": f"MemTotal: {sum(sizes) << 20} kB\nMemAvailable: {sum(sizes) << 19} kB",
        "proc/cpuinfo": "\n\n".join(f"processor\t: {cpu}\nmodel name\t: Processor of {shape.cores_per_socket} cores\n"
                                    f"flags\t\t: {shape.flags}" for cpu in sorted(everything)),
        "proc/self/cgroup": "0::/job",
        "sys/fs/cgroup/job/cpu.max": shape.cpu_max or "max 100000",
        "sys/fs/cgroup/job/memory.max": shape.memory_max or "max",
    })
    return root


def _interfaces(shape: Shape) -> dict[str, str]:
    files: dict[str, str] = {}
    for net in shape.nets:
        files |= {f"net/{net.name}/type": str(net.type), f"net/{net.name}/mtu": "1500",
                  f"net/{net.name}/operstate": "down" if net.mbit is None else "up",
                  f"net/{net.name}/speed": str(net.mbit or -1)}
        if net.type != 772:
            files[f"net/{net.name}/device/numa_node"] = str(net.node)
    for name, gbit in shape.rdma:
        files |= {f"infiniband/{name}/ports/1/state": "4: ACTIVE", f"infiniband/{name}/device/numa_node": "0",
                  f"infiniband/{name}/ports/1/rate": f"{gbit} Gb/sec (4X EDR)"}
    return files


def _in_turn(lists: list[list[tuple[int, int, int]]], size: int) -> list[tuple[int, int, int]]:
    """``size`` of each list, then ``size`` of each, until all are empty."""
    chunks = [[whole[i:i + size] for i in range(0, len(whole), size)] for whole in lists]
    return [item for turn in zip_longest(*chunks, fillvalue=[]) for chunk in turn for item in chunk]


def _set(name: str, cpus: Iterable[int], num_cpus: int, as_list: str, as_map: str = "") -> dict[str, str]:
    """A set of CPUs in both forms of the kernel: a list, and a map of 32-bit words in hexadecimal."""
    bits = sum(1 << cpu for cpu in cpus)
    words = [f"{bits >> 32 * word & 0xffffffff:08x}" for word in range((num_cpus + 31) // 32)]
    return {name + as_list: format_list(cpus), name + as_map: ",".join(reversed(words))}


def write(root: Path, files: dict[str, str]) -> None:
    """Write files by name below ``root``; each text becomes a line."""
    for folder in {name.rpartition("/")[0] for name in files}:
        (root / folder).mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        with open(f"{root}/{name}", "w") as file:
            file.write(text + "\n")
