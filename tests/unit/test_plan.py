"""Plans: which environment, program and allocator ranks get, without starting any."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from distrib.errors import ConfigError, DistribError, MissingPartError
from distrib.world import read_world
from launch.allocator import choose_allocator, find_library
from launch.cluster import OWN_NAMES, Cluster
from launch.local import free_port
from launch.plan import PORT_LATER, Plan, build_plan, find_program, wrapped
from launch.settings import REMOVED, SETTINGS, removed_names
from launch.topology import Core, Topology

MACHINE = Topology(tuple(Core((i, i + 4), i // 2, i // 2) for i in range(4)), {0: 0, 1: 1}, None, 8)
PLAIN = {"PATH": "/usr/bin:/bin"}


def plan(command: tuple[str, ...] = ("true",), *, nodes: int | None = None, ranks: int | None = None,
         environment: dict[str, str] | None = None, **keys: object) -> Plan:
    cluster = Cluster.model_validate({"allocator": "system", **keys})
    return build_plan(cluster, MACHINE, command, host="here", num_nodes=nodes, num_ranks=ranks,
                      environment=PLAIN if environment is None else environment)


def test_two_sockets() -> None:
    made = plan(("true", "a b"))
    assert [rank.place.cpus for rank in made.ranks if rank.place] == [(0, 1), (2, 3)]
    assert wrapped(made, made.ranks[1], 77)[4:] == [
        "--cpus=2-3", "--memory-node=1", "--parent=77", "--", "/usr/bin/true", "a b"]
    assert made.ranks[1].environment == {
        "OMP_NUM_THREADS": "2", "RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2",
        "GROUP_RANK": "0", "GROUP_WORLD_SIZE": "1", "ROLE_NAME": "default", "ROLE_RANK": "1", "ROLE_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": PORT_LATER, "TORCHELASTIC_RESTART_COUNT": "0",
    }
    assert OWN_NAMES - {"TORCHELASTIC_ERROR_FILE", "LAUNCH_ELASTIC", "LAUNCH_JOIN"} <= made.ranks[0].environment.keys()


def test_the_trainer_understands_it() -> None:
    for number, rank in enumerate(plan(ranks=3).with_port(1234).ranks):
        world = read_world(rank.environment)
        assert (world.rank, world.size, world.local_rank, world.local_size) == (number, 3, number, 3)
        assert (world.master_addr, world.master_port, world.store_is_hosted) == ("127.0.0.1", 1234, False)


def test_number_of_ranks() -> None:
    assert len(plan(ranks_per_node=3).ranks) == 3
    assert len(plan(ranks_per_node=3, ranks=5).ranks) == 5
    assert len(plan(threads_per_rank=1).ranks) == 4
    assert len(plan(nodes=1).ranks) == 2
    with pytest.raises(ConfigError, match="--nodes 2"):
        plan(nodes=2)
    with pytest.raises(ConfigError, match="70000 ranks"):
        plan(ranks=70000)


def test_precedence_of_the_environment() -> None:
    made = plan(env={"OMP_NUM_THREADS": 7, "MKL_NUM_THREADS": "1", "X": "cluster"},
                environment={**PLAIN, "OMP_NUM_THREADS": "9", "MKL_NUM_THREADS": "5", "X": "shell",
                             "OMPI_COMM_WORLD_LOCAL_SIZE": "2", "TORCHELASTIC_USE_AGENT_STORE": "True",
                             "GOMP_CPU_AFFINITY": "0"})
    environment = made.ranks[0].environment
    assert (environment["OMP_NUM_THREADS"], environment["MKL_NUM_THREADS"], environment["X"]) == ("7", "1", "cluster")
    assert made.removed == ("GOMP_CPU_AFFINITY", "OMPI_COMM_WORLD_LOCAL_SIZE", "TORCHELASTIC_USE_AGENT_STORE")


def test_settings_say_why() -> None:
    assert all(setting.why for setting in SETTINGS)
    assert all(why for _, why in REMOVED)
    assert not removed_names(setting.name for setting in SETTINGS)
    assert not removed_names(["PATH", "HOME", "SLURM_JOB_ID", "LD_LIBRARY_PATH", "OMP_NUM_THREADS"])


def test_json_holds_plain_values() -> None:
    document = json.loads(json.dumps(plan(("true", "$(x)\n")).to_json()))
    assert document["command"] == ["/usr/bin/true", "$(x)\n"]
    assert document["ranks"][1]["cpus"] == [2, 3]
    assert document["ranks"][1]["threads"] == 2
    assert document["ranks"][0]["argv"][-3:] == ["--", "/usr/bin/true", "$(x)\n"]


def test_programs_are_found(tmp_path: Path) -> None:
    script = tmp_path / "my script"
    script.write_text("#!/bin/sh\n")
    with pytest.raises(ConfigError, match="not executable"):
        find_program(str(script), "")
    script.chmod(0o755)
    assert find_program("my script", str(tmp_path)) == str(script)
    assert find_program(str(script), "") == str(script)
    python = Path(sys.executable)
    assert find_program(python.name, str(tmp_path)) == str(python)  # beside the running Python, off PATH
    assert find_program("sh", "/bin") == "/bin/sh"


@pytest.mark.parametrize("word", ["no-such-program", "./no/such/file", "/", "", "a\0b", "$(touch x)"])
def test_programs_that_are_not_there(word: str) -> None:
    with pytest.raises(ConfigError) as caught:
        find_program(word, "/usr/bin:/bin")
    assert "\n" not in str(caught.value)


def library(path: Path, *, foreign: bool = False) -> Path:
    """A file with the beginning of a shared library for this processor, or for another."""
    header = bytearray(Path(sys.executable).read_bytes()[:64])
    if foreign:
        header[18] ^= 1
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(header))
    return path


def test_tcmalloc_is_preloaded_where_it_is_installed(tmp_path: Path) -> None:
    here = library(tmp_path / "usr/lib/x86_64-linux-gnu/libtcmalloc_minimal.so.4")
    for wish in ("auto", "tcmalloc"):
        chosen = choose_allocator(wish, {}, tmp_path)
        assert (chosen.name, chosen.library) == ("tcmalloc", here)
        assert str(here) in chosen.remark
    assert choose_allocator("system", {}, tmp_path).library is None


def test_auto_without_tcmalloc_says_how_to_get_it(tmp_path: Path) -> None:
    library(tmp_path / "usr/lib/libjemalloc.so.2")
    chosen = choose_allocator("auto", {}, tmp_path)
    assert (chosen.name, chosen.library) == ("system", None)
    assert "apt-get install libtcmalloc-minimal4" in chosen.remark
    assert choose_allocator("jemalloc", {}, tmp_path).library == tmp_path / "usr/lib/libjemalloc.so.2"


@pytest.mark.parametrize(("wish", "package"), [("tcmalloc", "libtcmalloc-minimal4"), ("jemalloc", "libjemalloc2")])
def test_a_wished_allocator_that_is_missing_is_an_error(tmp_path: Path, wish: str, package: str) -> None:
    with pytest.raises(MissingPartError, match=f"apt-get install {package}") as caught:
        choose_allocator(wish, {}, tmp_path)
    assert isinstance(caught.value, DistribError)


def test_libraries_of_the_loader_cache_and_path(tmp_path: Path) -> None:
    names = ("libtcmalloc_minimal.so.4", "libtcmalloc.so.4")
    assert find_library(names, {}, tmp_path) is None
    cached = library(tmp_path / "opt/lib/libtcmalloc.so.4")
    cache = b"glibc-ld.so.cache1.1\0libtcmalloc.so.4\0" + bytes(cached) + b"\0/lib/other.so\0"
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/ld.so.cache").write_bytes(cache)
    assert find_library(names, {}, tmp_path) == cached
    first = library(tmp_path / "mine/libtcmalloc_minimal.so.4")
    assert find_library(names, {"LD_LIBRARY_PATH": f"relative:{first.parent}"}, tmp_path) == first


def test_libraries_that_can_not_be_preloaded_are_passed_over(tmp_path: Path) -> None:
    library(tmp_path / "usr/lib/libtcmalloc_minimal.so.4", foreign=True)
    spaced = library(tmp_path / "a b/libtcmalloc_minimal.so.4")
    assert find_library(("libtcmalloc_minimal.so.4",), {"LD_LIBRARY_PATH": str(spaced.parent)}, tmp_path) is None


def test_what_is_preloaded_already_stays(tmp_path: Path) -> None:
    library(tmp_path / "usr/lib/libtcmalloc_minimal.so.4")
    chosen = choose_allocator("auto", {"LD_PRELOAD": "/x/libfoo.so /y/libjemalloc.so.2"}, tmp_path)
    assert (chosen.name, chosen.library) == ("jemalloc", None)


def test_free_ports_are_ports() -> None:
    assert 1024 < free_port() < 65536
