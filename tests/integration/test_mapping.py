"""mpirun's own report of which cores it gives to ranks agrees with ours, core by core, on machines that hwloc makes up.

hwloc writes each machine as XML: from a description in its own words, or by reading our files of a machine as it would
read a kernel's. Open MPI maps ranks onto the XML and reports, and starts nothing.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest

from launch.placement import Wishes, count_ranks, place
from launch.topology import Topology, describe, read_topology
from tests.rig.machines import SHAPES, build

Start = Callable[..., "subprocess.Popen[str]"]
Cores = list[tuple[int, ...]]
LIMIT_S = 60


@pytest.fixture(autouse=True, scope="module")
def _tools() -> None:
    lack = [program for program in ("hwloc-ls", "mpirun") if shutil.which(program) is None]
    if lack:
        assert os.environ.get("CI") != "true", lack
        pytest.skip(f"{' and '.join(lack)} not installed (apt-get install hwloc-nox openmpi-bin)")


def run(start: Start, *argv: str | Path, **environment: str) -> str:
    process = start(*argv, **environment)
    out, err = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0, err
    return out


def read_cores(xml: Path) -> Cores:
    """The hardware threads, by the kernel's numbers, of each core, by hwloc's."""
    return [tuple(sorted(int(thread.attrib["os_index"]) for thread in core.iter("object")
                         if thread.attrib["type"] == "PU"))
            for core in ElementTree.parse(xml).iter("object") if core.attrib["type"] == "Core"]


def ask_mpirun(start: Start, xml: Path, *options: str) -> Cores:
    """The CPUs that Open MPI binds each rank to."""
    cores = read_cores(xml)
    if os.geteuid() == 0:
        options = ("--allow-run-as-root", *options)
    out = run(start, "mpirun", "--host", "localhost:256", "--do-not-launch", "--display-map", *options, "true",
              HWLOC_XMLFILE=str(xml), HWLOC_THISSYSTEM="0")
    found = []
    for number, (rank, bound) in enumerate(re.findall(r"Process rank: (\d+) Bound: (.*?):\[", out)):
        assert int(rank) == number
        found.append(tuple(sorted(
            cpu for core, first, last in re.findall(r"core (\d+)\[hwt (\d+)(?:-(\d+))?\]", bound)
            for cpu in cores[int(core)][int(first):int(last or first) + 1])))
    assert found, out
    return found


def ours(machine: Topology, num_ranks: int, wishes: Wishes) -> Cores:
    """The CPUs of the cores that we let each rank compute on; mpirun binds to all threads of a core."""
    whole = {cpu: core.cpus for core in machine.cores for cpu in core.cpus}
    return [tuple(sorted({other for cpu in where.cpus for other in whole[cpu]}))
            for where in place(machine, num_ranks, wishes).places]


@pytest.mark.parametrize(("num_ranks", "wishes", "mapping"), [
    (4, Wishes(comm_cores=4), "ppr:1:numa:pe=4"),  # mpirun leaves four cores of each node; ours are for communication
    (8, Wishes(), "ppr:2:numa:pe=4"),
    (8, Wishes(4), "ppr:1:l3cache:pe=4"),
    (2, Wishes(), "ppr:1:socket:pe=16"),
], ids=str)
def test_two_sockets_in_hwlocs_words(start: Start, tmp_path: Path, num_ranks: int, wishes: Wishes,
                                     mapping: str) -> None:
    xml = tmp_path / "dual.xml"
    described = describe(2, 2, 16, 2, caches_per_socket=4)
    numbers = ",".join(str(cpu) for core in described.cores for cpu in core.cpus)
    run(start, "hwloc-ls", "--input", f"pack:2 numa:2 l3:2 core:4 pu:2(indexes={numbers})", "--of", "xml", xml)
    assert ask_mpirun(start, xml, "--map-by", mapping, "--bind-to", "core", "-np", str(num_ranks)) == ours(
        described, num_ranks, wishes)


@pytest.mark.parametrize(("name", "wishes", "mapping"), [
    ("two sockets", Wishes(), "ppr:1:numa:pe=16"),
    ("two sockets", Wishes(threads_per_rank=4), "ppr:4:socket:pe=4"),
    ("two sockets", Wishes(comm_cores=2), "ppr:1:socket:pe=14"),
    ("sub-NUMA clusters", Wishes(), "ppr:1:numa:pe=5"),
    ("one node in turn", Wishes(threads_per_rank=8), "ppr:2:numa:pe=8"),
    ("many L3s", Wishes(threads_per_rank=4), "ppr:1:l3cache:pe=4"),
    ("siblings adjacent", Wishes(threads_per_rank=2), "ppr:2:numa:pe=2"),
    ("half a node under Slurm", Wishes(threads_per_rank=4), "ppr:4:numa:pe=4"),
    ("small VM", Wishes(threads_per_rank=1), "ppr:2:socket:pe=1"),
], ids=str)
def test_machines_as_hwloc_reads_them(start: Start, tmp_path: Path, name: str, wishes: Wishes, mapping: str) -> None:
    shape = SHAPES[name]
    root, xml = build(tmp_path / "root", shape), tmp_path / "machine.xml"
    bits = sum(1 << cpu for cpu in shape.usable)
    words = ",".join(f"0x{bits >> shift & 0xffffffff:08x}" for shift in range(96, -1, -32))
    run(start, "hwloc-ls", "--input", root, "--input-format", "fsroot", "--restrict", words, "--of", "xml", xml)
    machine = read_topology(root, shape.usable)
    assert sorted(read_cores(xml)) == sorted(core.cpus for core in machine.cores)
    num_ranks = count_ranks(machine, wishes)
    assert ask_mpirun(start, xml, "--map-by", mapping, "--bind-to", "core", "-np", str(num_ranks)) == ours(
        machine, num_ranks, wishes)


def test_hyper_threads(start: Start, tmp_path: Path) -> None:
    shape = SHAPES["sub-NUMA clusters"]
    root, xml = build(tmp_path / "root", shape), tmp_path / "machine.xml"
    run(start, "hwloc-ls", "--input", root, "--input-format", "fsroot", "--of", "xml", xml)
    made = place(read_topology(root, shape.usable), 4, Wishes(hyper_threads=True))
    assert ask_mpirun(start, xml, "--use-hwthread-cpus", "--map-by", "ppr:1:numa:pe=10", "--bind-to", "hwthread",
                      "-np", "4") == [where.cpus for where in made.places]
