"""All-reduce between two ranks of one core each: gloo's time over oneCCL's, beside Horovod, raw MPI and the link.

    python benchmarks/allreduce.py [--links shm,loopback,veth,veth-1gbit] [--dtypes fp32,int32,bf16]
                                   [--sizes 4K,64K,1M,25M,100M] [--rounds 30]

gloo and oneCCL live in the same two processes and take turns; so do gloo and Horovod (over its gloo) in another pair
of processes, as Horovod's thread takes processor time even when idle: the columns "gloo/..." are medians of ratios
pair by pair, with the smallest and largest. MPI is Open MPI's MPI_Allreduce in a C program that is compiled here.
"limit": a message's bytes over the link's speed, measured by streaming both ways at once through one TCP
connection; for shared memory, one copy of the message by each core. A shaped link lets bursts of 256 KB pass faster.

The links that are made of network namespaces need root. What is missing is named on stderr, its columns show "-".
About ten minutes; wants a quiet machine.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from allreduce_mpi import compile_program, run_program
from allreduce_rank import DTYPES, Part
from timing import note, ratio, show

from distrib.comm.table import backend_module
from launch.local import free_port

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.rig.nodes import Nodes, why_not  # noqa: E402

Cells = dict[tuple[str, int], dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Link:
    title: str
    mpi: tuple[str, ...]
    """How Open MPI is told to use it."""
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)
    limit: str = "tcp"
    on_nodes: bool = False
    rate: str | None = None


LOOPBACK_MPI = ("--mca", "btl", "tcp,self", "--mca", "btl_tcp_if_include", "lo")
VETH_MPI = ("--mca", "btl", "tcp,self", "--mca", "btl_tcp_if_include", "eth0", "--mca", "oob_tcp_if_include", "eth0")
ETH0 = {"GLOO_SOCKET_IFNAME": "eth0"}
LINKS = {
    "shm": Link("shared memory", ("--mca", "btl", "vader,self"), limit="memory"),
    "loopback": Link("loopback TCP", LOOPBACK_MPI, {"CCL_ATL_SHM": "0"}),
    "veth": Link("veth, unshaped", VETH_MPI, ETH0, on_nodes=True),
    "veth-1gbit": Link("veth, 1 Gbit/s", VETH_MPI, ETH0, on_nodes=True, rate="1gbit"),
}


def parse_size(text: str) -> int:
    return int(text[:-1]) << {"K": 10, "M": 20}[text[-1]]


def size_name(size: int) -> str:
    return f"{size >> 20} MB" if size >= 1 << 20 else f"{size >> 10} KB"


def run_pair(link: Link, nodes: Nodes | None, cores: list[int], backend: str, limit: str,
             options: argparse.Namespace) -> Cells:
    """Measure gloo and another backend in two processes. Fewer cells if they failed, which is noted."""
    port = free_port()
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        results = Path(folder, "results")
        results.touch()
        ranks = []
        for rank in range(2):
            world = {"rank": rank, "size": 2, "master_port": port, "local_rank": rank, "local_size": 2,
                     "host": socket.gethostname(), "master_addr": "127.0.0.1"}
            if nodes is not None:
                world |= {"local_rank": 0, "local_size": 1, "host": nodes.names[rank],
                          "master_addr": nodes.address(nodes.names[0])}
            part = Part(world, cores[rank], backend, limit, options.dtypes, options.sizes, options.rounds, str(results))
            argv = [sys.executable, str(ROOT / "benchmarks" / "allreduce_rank.py"),
                    json.dumps(dataclasses.asdict(part))]
            environment = {"OMP_NUM_THREADS": "1", **link.environment}
            process = (subprocess.Popen(argv, env={**os.environ, **environment}, text=True) if nodes is None
                       else nodes.start(nodes.names[rank], argv, environment))
            stack.callback(process.wait)
            stack.callback(process.kill)
            ranks.append(process)
        if sum(process.wait() != 0 for process in ranks):
            note(f"{link.title}: the ranks of gloo and {backend} failed")
        rows = [json.loads(line) for line in results.read_text().splitlines()]
    return {(row["dtype"], row["size"]): row for row in rows}


def milliseconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1e3 * seconds:.3f}"


def report(link: Link, ours: Cells, horovod: Cells, mpi: Mapping[tuple[str, int], float],
           options: argparse.Namespace) -> dict[str, float]:
    """Print a link's rows; returns gloo/oneccl of each."""
    ratios = {}
    for key in [(dtype, size) for dtype in options.dtypes for size in options.sizes]:
        words = [link.title, key[0], size_name(key[1])]
        label = ", ".join(words)
        cell, beside = ours.get(key, {}), horovod.get(key, {})
        words.append(milliseconds(statistics.median(cell["gloo"]) if cell else None))
        for name, row in (("oneccl", cell), ("horovod", beside)):
            if name not in row:
                words += ["-", "-"]
                continue
            middle, least, most = ratio(row["gloo"], row[name])
            words += [milliseconds(statistics.median(row[name])), f"{middle:.2f} ({least:.2f} to {most:.2f})"]
            if name == "oneccl":
                ratios[label] = middle
        words += [milliseconds(mpi.get(key)), milliseconds(cell.get("limit_s"))]
        show("| " + " | ".join(words) + " |")
    return ratios


def usable(name: str) -> str:
    """A backend's name, or nothing if it is missing, which is noted."""
    if (lack := backend_module(name).missing()) is not None:
        note(f"{name}: {lack}")
        return ""
    return name


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--links", default=",".join(LINKS))
    parser.add_argument("--dtypes", default=",".join(DTYPES))
    parser.add_argument("--sizes", default="4K,64K,1M,25M,100M")
    parser.add_argument("--rounds", type=int, default=30, help="at most; slow cells take fewer, but at least 5 of them")
    options = parser.parse_args()
    options.dtypes = options.dtypes.split(",")
    options.sizes = [parse_size(text) for text in options.sizes.split(",")]
    cores = sorted(os.sched_getaffinity(0))[:2]
    if len(cores) < 2:
        parser.error("two ranks of one core each need two cores")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # what was started is ended on the way out
    oneccl, horovod = usable("oneccl"), usable("horovod")
    ratios: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        program = compile_program(Path(folder))
        nodes = None
        links = [LINKS[name] for name in options.links.split(",")]
        if any(link.on_nodes for link in links):
            if (reason := why_not()) is not None:
                note(f"no links between nodes: {reason}")
                links = [link for link in links if not link.on_nodes]
            else:
                nodes = stack.enter_context(Nodes(2))
        show(f"2 ranks, cores {cores[0]} and {cores[1]}; ms; medians of up to {options.rounds} rounds\n")
        columns = ("link", "dtype", "size", "gloo", "oneccl", "gloo/oneccl", "horovod", "gloo/horovod", "MPI", "limit")
        show("| " + " | ".join(columns) + " |\n" + "|---|---|---" + "|---:" * (len(columns) - 3) + "|")
        for link in links:
            note(link.title)
            between = nodes if link.on_nodes else None
            if between is not None:
                between.shape(between.names[1], link.rate)
            ours = run_pair(link, between, cores, oneccl, link.limit, options)
            beside = run_pair(link, between, cores, horovod, "", options) if horovod else {}
            mpi = {} if program is None else run_program(program, link.mpi, between, cores, options)
            ratios |= report(link, ours, beside, mpi, options)
    if ratios:
        worst = min(ratios, key=lambda label: ratios[label])
        show(f"\nsmallest gloo/oneccl: {ratios[worst]:.2f} ({worst})")


if __name__ == "__main__":
    main()
