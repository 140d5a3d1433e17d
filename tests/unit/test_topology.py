"""Reading machines: small /sys and /proc trees of real shapes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distrib.errors import WorldError
from launch.topology import Core, format_list, parse_list, read_topology


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")


def machine(root: Path, *, sockets: int = 1, nodes: int = 1, cores: int = 2, threads: int = 1) -> None:
    """A machine of ``nodes`` NUMA nodes a socket, ``cores`` cores a node; CPUs numbered as Linux does on Intel."""
    total = sockets * nodes * cores
    system = "sys/devices/system"
    files = {f"{system}/cpu/online": f"0-{total * threads - 1}", "proc/self/status": "Name:\tx\n"}
    num_nodes = sockets * nodes
    for node in range(num_nodes):
        cpus = [t * total + node * cores + c for t in range(threads) for c in range(cores)]
        files[f"{system}/node/node{node}/cpulist"] = format_list(cpus)
        distances = [10 if o == node else 12 if o // nodes == node // nodes else 21 for o in range(num_nodes)]
        files[f"{system}/node/node{node}/distance"] = " ".join(map(str, distances))
        for cpu in cpus:
            topology = f"{system}/cpu/cpu{cpu}/topology"
            files[f"{topology}/thread_siblings_list"] = format_list(t * total + cpu % total for t in range(threads))
            files[f"{topology}/physical_package_id"] = str(node // nodes)
    files[f"{system}/node/online"] = files[f"{system}/node/has_memory"] = format_list(range(num_nodes))
    write(root, files)


@given(st.sets(st.integers(0, 300)))
def test_lists_survive_the_round_trip(numbers: set[int]) -> None:
    assert parse_list(format_list(numbers)) == tuple(sorted(numbers))


def test_lists_as_the_kernel_writes_them() -> None:
    assert parse_list("0-3,8,10-11\n") == (0, 1, 2, 3, 8, 10, 11)
    assert parse_list("\n") == ()
    assert format_list((3, 0, 1, 2, 9)) == "0-3,9"


def test_two_sockets_with_hyper_threads(tmp_path: Path) -> None:
    machine(tmp_path, sockets=2, cores=4, threads=2)
    found = read_topology(tmp_path, range(16))
    assert found.cores[0] == Core((0, 8), socket=0, node=0)
    assert found.cores[7] == Core((7, 15), socket=1, node=1)
    assert len(found.cores) == 8
    assert found.nodes == found.memory_nodes == (0, 1)
    assert found.machine_cpus == 16
    assert found.quota is None


def test_sub_numa_clusters_stay_in_order_of_sockets(tmp_path: Path) -> None:
    machine(tmp_path, sockets=2, nodes=2, cores=2)
    assert [(core.socket, core.node) for core in read_topology(tmp_path, range(8)).cores] == [
        (0, 0), (0, 0), (0, 1), (0, 1), (1, 2), (1, 2), (1, 3), (1, 3)]


def test_virtual_machine_with_two_cores(tmp_path: Path) -> None:
    machine(tmp_path)
    found = read_topology(tmp_path, range(2))
    assert found.cores == (Core((0,), 0, 0), Core((1,), 0, 0))
    assert found.memory_nodes == (0,)


def test_a_cpuset_leaves_part_of_a_machine(tmp_path: Path) -> None:
    machine(tmp_path, sockets=2, cores=4, threads=2)
    found = read_topology(tmp_path, [5, 13, 6])  # one whole core and one thread of another, on the second socket
    assert found.cores == (Core((5, 13), 1, 1), Core((6,), 1, 1))
    assert found.cpus == (5, 13, 6)
    assert found.nodes == (1,)


def test_the_job_may_use_memory_of_one_node_only(tmp_path: Path) -> None:
    machine(tmp_path, sockets=2, cores=2)
    write(tmp_path, {"proc/self/status": "Mems_allowed:\t2\nMems_allowed_list:\t1"})
    assert read_topology(tmp_path, range(4)).memory_nearest == {0: 1, 1: 1}


def test_a_node_without_memory_takes_the_nearest(tmp_path: Path) -> None:
    machine(tmp_path, sockets=2, nodes=2, cores=1)
    write(tmp_path, {"sys/devices/system/node/has_memory": "1-2"})
    assert read_topology(tmp_path, range(4)).memory_nearest == {0: 1, 1: 1, 2: 2, 3: 2}


def test_a_memory_node_without_cores_is_no_place_for_ranks(tmp_path: Path) -> None:
    machine(tmp_path, cores=2)
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
    machine(tmp_path, cores=4)
    write(tmp_path, files)
    assert read_topology(tmp_path, range(4)).quota == quota


def test_a_machine_that_hides_itself_has_one_core_a_cpu(tmp_path: Path) -> None:
    found = read_topology(tmp_path, [3, 4])
    assert found.cores == (Core((3,), 0, 0), Core((4,), 0, 0))
    assert found.memory_nearest == {0: 0}
    assert found.machine_cpus == 2


def test_no_cpu_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(WorldError, match="no CPU"):
        read_topology(tmp_path, [])


def test_this_machine() -> None:
    assert set(read_topology().cpus) == os.sched_getaffinity(0)
