"""What machines tell of themselves, beyond what placement needs."""

from __future__ import annotations

import json
import os
from pathlib import Path

import psutil
import pytest

from launch.machine import Cache, Interface, Memory, read_machine
from tests.rig.machines import GB, SHAPES, Net, Shape, build, write


def test_two_sockets(tmp_path: Path) -> None:
    found = read_machine(build(tmp_path, SHAPES["two sockets"]))
    assert found.model == "Processor of 16 cores"
    assert found.instruction_sets == (
        "avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_int8", "amx_bf16")
    assert found.bf16
    assert found.amx
    assert found.caches[0] == Cache(1, "data", 48 << 10, (0, 32))
    assert found.caches[-2:] == (Cache(3, "unified", 32 << 20, (*range(16), *range(32, 48))),
                                 Cache(3, "unified", 32 << 20, (*range(16, 32), *range(48, 64))))
    assert len(found.caches) == 32 + 32 + 2
    assert found.memory_bytes == 512 * GB
    assert found.memory_limit_bytes is None
    assert found.interfaces == (
        Interface("eth0", "ethernet", True, 25000, 0), Interface("eth1", "ethernet", False, None, 0),
        Interface("ib0", "infiniband", True, 100000, 1), Interface("lo", "loopback", True, None, None),
        Interface("mlx5_0/1", "rdma", True, 100000, 0))


def test_a_job_that_owns_half_a_node(tmp_path: Path) -> None:
    found = read_machine(build(tmp_path, SHAPES["half a node under Slurm"]))
    half = (*range(16, 32), *range(48, 64))
    assert set(found.topology.cpus) == set(half)
    assert [(memory.node, memory.usable) for memory in found.memory] == [(0, False), (1, True)]
    assert found.memory_limit_bytes == 250 * GB
    assert found.caches[-1].cpus == half
    assert sum(cache.level == 3 for cache in found.caches) == 1


def test_a_container(tmp_path: Path) -> None:
    found = read_machine(build(tmp_path, SHAPES["container of 1.5 CPUs"]))
    assert (found.topology.quota, found.memory_limit_bytes) == (1.5, 4 * GB)


def test_memory_without_cores_and_cores_without_memory(tmp_path: Path) -> None:
    far = read_machine(build(tmp_path / "far", SHAPES["memory without cores"])).memory
    assert far[2] == Memory(2, 512 * GB, (), True)
    none = read_machine(build(tmp_path / "none", SHAPES["a node without memory"])).memory
    assert (none[1].bytes, none[1].usable, len(none[1].cpus)) == (0, False, 16)


def test_a_virtual_machine_does_not_tell_the_speed_of_its_link(tmp_path: Path) -> None:
    found = read_machine(build(tmp_path, SHAPES["small VM"]))
    assert found.interfaces == (Interface("eth0", "ethernet", True, None, None),)
    assert (found.bf16, found.amx) == (True, False)


@pytest.mark.parametrize(("files", "limit"), [
    ({"proc/self/cgroup": "4:memory:/a/b", "sys/fs/cgroup/memory/a/memory.limit_in_bytes": str(GB),
      "sys/fs/cgroup/memory/a/b/memory.limit_in_bytes": str(2 * GB)}, GB),
    ({"proc/self/cgroup": "4:memory:/", "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712"}, None),
    ({"proc/self/cgroup": "0::/a", "sys/fs/cgroup/a/memory.max": "max"}, None),
    ({"proc/self/cgroup": "0::/a", "sys/fs/cgroup/a/memory.max": str(64 * GB)}, None),  # more than there is
    ({"proc/self/cgroup": "4:cpu:/a", "sys/fs/cgroup/memory/a/memory.limit_in_bytes": str(GB)}, None),
])
def test_memory_limits(tmp_path: Path, files: dict[str, str], limit: int | None) -> None:
    build(tmp_path, Shape(memory_gb=8))
    write(tmp_path, files)
    assert read_machine(tmp_path).memory_limit_bytes == limit


def test_arm_names_its_flags_otherwise(tmp_path: Path) -> None:
    build(tmp_path, Shape())
    write(tmp_path, {"proc/cpuinfo": "processor\t: 0\nFeatures\t: fp asimd sve bf16 i8mm\n"})
    found = read_machine(tmp_path)
    assert (found.model, found.instruction_sets) == ("", ("asimd", "sve", "bf16", "i8mm"))
    assert (found.bf16, found.amx) == (True, False)


def test_a_machine_that_hides_itself(tmp_path: Path) -> None:
    found = read_machine(tmp_path, [0, 1])
    assert (found.model, found.instruction_sets, found.caches, found.memory, found.memory_bytes, found.interfaces) == (
        "", (), (), (), 0, ())


def test_files_among_the_interfaces_are_none(tmp_path: Path) -> None:
    build(tmp_path, Shape(nets=(Net("bond0", 50000, -1),)))
    write(tmp_path, {"sys/class/net/bonding_masters": "bond0"})
    assert [(each.name, each.mbit) for each in read_machine(tmp_path).interfaces] == [("bond0", 50000)]


@pytest.mark.parametrize("name", ["sub-NUMA clusters", "small VM"])
def test_json_holds_plain_values(tmp_path: Path, name: str) -> None:
    found = read_machine(build(tmp_path, SHAPES[name]))
    document = json.loads(json.dumps(found.to_json()))
    assert document == found.to_json()
    assert document["num_sockets"] == SHAPES[name].sockets
    assert document["num_cores"] == len(document["cores"])
    assert document["cores"][-1]["cpus"] == {"sub-NUMA clusters": "19,39", "small VM": "1"}[name]


def test_this_machine() -> None:
    found = read_machine()
    assert set(found.topology.cpus) == os.sched_getaffinity(0)
    assert abs(found.memory_bytes - psutil.virtual_memory().total) < 1 << 20
    lo = next(each for each in found.interfaces if each.name == "lo")
    assert (lo.kind, lo.mbit) == ("loopback", None)
    assert "127.0.0.1" in lo.addresses
    assert {each.name for each in found.interfaces} >= set(psutil.net_if_addrs())
    assert json.dumps(found.to_json())
