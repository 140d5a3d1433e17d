"""Reading machines: /sys and /proc trees of real shapes."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distrib.errors import ConfigError, WorldError
from launch.placement import Wishes, count_ranks, place
from launch.topology import Core, Topology, describe, format_list, parse_list, read_topology
from tests.rig.machines import SHAPES, Shape, build, write

FOLDERS: list[Path] = []


@pytest.fixture(autouse=True, scope="module")
def _folder_of_machines(tmp_path_factory: pytest.TempPathFactory) -> None:
    FOLDERS.append(tmp_path_factory.mktemp("machines"))


@cache
def folder_of(shape: Shape) -> Path:
    """The files of a shape, made once for all tests that do not change them."""
    return build(Path(tempfile.mkdtemp(dir=FOLDERS[-1])), shape)


@given(st.sets(st.integers(0, 300)))
def test_lists_survive_the_round_trip(numbers: set[int]) -> None:
    assert parse_list(format_list(numbers)) == tuple(sorted(numbers))


def test_lists_as_the_kernel_writes_them() -> None:
    assert parse_list("0-3,8,10-11\n") == (0, 1, 2, 3, 8, 10, 11)
    assert parse_list("\n") == ()
    assert format_list((3, 0, 1, 2, 9)) == "0-3,9"


def test_two_sockets_with_hyper_threads(tmp_path: Path) -> None:
    build(tmp_path, Shape(sockets=2, cores_per_socket=4, threads_per_core=2))
    found = read_topology(tmp_path, range(16))
    assert found.cores[0] == Core((0, 8), socket=0, node=0)
    assert found.cores[7] == Core((7, 15), socket=1, node=1, cache=4)
    assert len(found.cores) == 8
    assert found.nodes == found.memory_nodes == (0, 1)
    assert found.machine_cpus == 16
    assert found.quota is None


def test_sub_numa_clusters_stay_in_order_of_sockets(tmp_path: Path) -> None:
    build(tmp_path, Shape(sockets=2, numa_per_socket=2, cores_per_socket=4))
    assert [(core.socket, core.node) for core in read_topology(tmp_path, range(8)).cores] == [
        (0, 0), (0, 0), (0, 1), (0, 1), (1, 2), (1, 2), (1, 3), (1, 3)]


def test_virtual_machine_with_two_cores(tmp_path: Path) -> None:
    build(tmp_path, Shape())
    found = read_topology(tmp_path, range(2))
    assert found.cores == (Core((0,), 0, 0), Core((1,), 0, 0))
    assert found.memory_nodes == (0,)


def test_a_cpuset_leaves_part_of_a_machine(tmp_path: Path) -> None:
    build(tmp_path, Shape(sockets=2, cores_per_socket=4, threads_per_core=2))
    found = read_topology(tmp_path, [5, 13, 6])  # one whole core and one thread of another, on the second socket
    assert found.cores == (Core((5, 13), 1, 1, 4), Core((6,), 1, 1, 4))
    assert found.cpus == (5, 13, 6)
    assert found.nodes == (1,)


def test_the_job_may_use_memory_of_one_node_only(tmp_path: Path) -> None:
    build(tmp_path, Shape(sockets=2))
    write(tmp_path, {"proc/self/status": "Mems_allowed:\t2\nMems_allowed_list:\t1"})
    assert read_topology(tmp_path, range(4)).memory_nearest == {0: 1, 1: 1}


def test_a_node_without_memory_takes_the_nearest(tmp_path: Path) -> None:
    build(tmp_path, Shape(sockets=2, numa_per_socket=2))
    write(tmp_path, {"sys/devices/system/node/has_memory": "1-2"})
    assert read_topology(tmp_path, range(4)).memory_nearest == {0: 1, 1: 1, 2: 2, 3: 2}


def test_a_memory_node_without_cores_is_no_place_for_ranks(tmp_path: Path) -> None:
    build(tmp_path, Shape())
    write(tmp_path, {"sys/devices/system/node/online": "0-1", "sys/devices/system/node/has_memory": "0-1",
                     "sys/devices/system/node/node1/cpulist": "", "sys/devices/system/node/node0/distance": "10 20"})
    found = read_topology(tmp_path, range(2))
    assert found.nodes == found.memory_nodes == (0,)


@pytest.mark.parametrize(("files", "quota"), [
    ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "150000 100000"}, 1.5),
    ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "max 100000"}, None),
    ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "900000 100000"}, None),  # more than the CPUs
    ({"proc/self/cgroup": "0::/a/b", "sys/fs/cgroup/a/cpu.max": "200000 100000",
      "sys/fs/cgroup/a/b/cpu.max": "300000 100000"}, 2.0),  # the parent is the tighter
    ({"proc/self/cgroup": "0::/not/seen/here", "sys/fs/cgroup/cpu.max": "50000 100000"}, 0.5),
    ({"proc/self/cgroup": "3:cpu,cpuacct:/job\n1:memory:/", "sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_quota_us": "250000",
      "sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_period_us": "100000"}, 2.5),
    ({"proc/self/cgroup": "1:cpu:/", "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1",
      "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000"}, None),
    ({"proc/self/cgroup": "nonsense"}, None),
    ({}, None),
])
def test_quota_of_a_container_or_job(tmp_path: Path, files: dict[str, str], quota: float | None) -> None:
    build(tmp_path, Shape(cores_per_socket=4))
    write(tmp_path, files)
    assert read_topology(tmp_path, range(4)).quota == quota


def test_a_machine_that_hides_itself_has_one_core_a_cpu(tmp_path: Path) -> None:
    found = read_topology(tmp_path, [3, 4])
    assert found.cores == (Core((3,), 0, 0), Core((4,), 0, 0))
    assert found.memory_nearest == {0: 0}
    assert found.machine_cpus == 2


def test_files_that_hold_nonsense_tell_nothing(tmp_path: Path) -> None:
    build(tmp_path, Shape(cores_per_socket=2))
    for file in (tmp_path / "sys/devices/system/cpu").rglob("*"):
        if file.is_file():
            file.write_bytes(b"\xff\x00 what?\n")
    assert read_topology(tmp_path, range(2)).cores == (Core((0,), 0, 0), Core((1,), 0, 0))


def test_the_last_level_cache_is_found_by_its_level(tmp_path: Path) -> None:
    build(tmp_path, Shape(cores_per_socket=8, caches_per_socket=2))
    assert [core.cache for core in read_topology(tmp_path, range(8)).cores] == [0, 0, 0, 0, 4, 4, 4, 4]
    assert [core.cache for core in read_topology(tmp_path, [2, 3, 6]).cores] == [0, 0, 4]  # named by the machine
    for number in range(8):  # a virtual machine without an L3
        (tmp_path / f"sys/devices/system/cpu/cpu{number}/cache/index3").rename(tmp_path / f"index3-{number}")
    assert [core.cache for core in read_topology(tmp_path, range(8)).cores] == list(range(8))


def test_no_cpu_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(WorldError, match="no CPU"):
        read_topology(tmp_path, [])


def test_this_machine() -> None:
    assert set(read_topology().cpus) == os.sched_getaffinity(0)


small_shapes = st.builds(
    Shape, sockets=st.integers(1, 2), numa_per_socket=st.integers(1, 3), cores_per_socket=st.integers(3, 8),
    threads_per_core=st.integers(1, 2), caches_per_socket=st.none() | st.integers(1, 3),
    numbering=st.sampled_from(["blocks", "clusters", "round", "adjacent"]))


def described(shape: Shape) -> Topology:
    return describe(shape.sockets, shape.numa_per_socket, shape.cores_per_socket, shape.threads_per_core,
                    shape.caches_per_socket)


@settings(max_examples=20)
@given(small_shapes)
def test_a_described_machine_is_the_machine(shape: Shape) -> None:
    in_blocks = replace(shape, numbering="blocks")
    assert read_topology(folder_of(in_blocks), in_blocks.usable) == described(shape)


def by_core(machine: Topology, wishes: Wishes) -> list[object]:
    """The placement of the automatic number of ranks, with cores by their place in the topology."""
    number = {cpu: i for i, core in enumerate(machine.cores) for cpu in core.cpus}
    return [(sorted({number[cpu] for cpu in where.cpus}), sorted(number[cpu] for cpu in where.comm_cpus),
             where.threads, where.memory_node)
            for where in place(machine, count_ranks(machine, wishes), wishes).places]


@settings(max_examples=20)
@given(small_shapes, st.integers(0, 2))
def test_a_described_machine_is_shared_out_as_the_machine_however_it_is_numbered(shape: Shape, comm: int) -> None:
    # A node's caches come in the order of their first CPU, which is that of its cores unless nodes share caches.
    shape = replace(shape, caches_per_socket=None)
    wishes = Wishes(comm_cores=comm)
    assert by_core(described(shape), wishes) == by_core(read_topology(folder_of(shape), shape.usable), wishes)


@pytest.mark.parametrize("name", SHAPES)
def test_named_machines(name: str) -> None:
    shape = SHAPES[name]
    found = read_topology(folder_of(shape), shape.usable)
    assert set(found.cpus) == set(shape.usable)
    assert found.machine_cpus == shape.sockets * shape.cores_per_socket * shape.threads_per_core
    where = {cpu: core for number, core in enumerate(shape.cores) for cpu in shape.cpus(number)}
    for core in found.cores:
        assert {(core.socket, core.node)} == {where[cpu][:2] for cpu in core.cpus}
        assert where[core.cache][2] == where[core.cpus[0]][2]
        assert len(core.cpus) == shape.threads_per_core


def test_what_is_special_about_them() -> None:
    read = {name: read_topology(folder_of(shape), shape.usable) for name, shape in SHAPES.items()}
    assert [core.cpus for core in read["sub-NUMA clusters"].cores if core.node == 0] == [
        (cpu, cpu + 20) for cpu in (0, 1, 4, 5, 8)]
    assert [core.cpus[0] for core in read["one node in turn"].cores][:3] == [0, 2, 4]
    assert read["siblings adjacent"].cores[1].cpus == (2, 3)
    assert read["memory without cores"].memory_nearest == {0: 0, 1: 1}
    assert read["a node without memory"].memory_nearest == {0: 0, 1: 0, 2: 2, 3: 3}
    assert len({core.cache for core in read["many L3s"].cores}) == 16
    assert read["half a node under Slurm"].nodes == read["half a node under Slurm"].memory_nodes == (1,)
    assert read["container of 1.5 CPUs"].quota == 1.5


@pytest.mark.parametrize("numbers", [(0, 1, 4, 1), (1, 0, 4, 1), (1, 1, 0, 1), (1, 1, 4, 0), (1, 5, 4, 1),
                                     (1, 1, 4, 1, 5), (1, 1, 4, 1, -1)])
def test_machines_that_can_not_be(numbers: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError):
        describe(*numbers)


def test_a_wrapper_can_import_it_without_site_packages() -> None:
    code = ("import sys; sys.path.insert(0, sys.argv[1]); import launch.topology, launch.placement; "
            "launch.topology.read_topology(); "
            "print(*sorted(name for name in sys.modules if name.split('.')[0] in ('distrib', 'launch', 'psutil')))")
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code, Path(__file__).parents[2]], capture_output=True,
                          text=True, check=True, timeout=60)
    assert done.stdout.split() == ["distrib", "distrib.errors", "launch", "launch.placement", "launch.topology"]
