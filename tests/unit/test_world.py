from __future__ import annotations

import pytest

from distrib.errors import WorldError
from distrib.world import World, read_world

MEETING = {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"}
TORCHRUN = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4", **MEETING}
OPEN_MPI = {"OMPI_COMM_WORLD_RANK": "5", "OMPI_COMM_WORLD_SIZE": "8", "OMPI_COMM_WORLD_LOCAL_RANK": "1",
            "OMPI_COMM_WORLD_LOCAL_SIZE": "4", **MEETING}
HOROVODRUN = {"HOROVOD_RANK": "5", "HOROVOD_SIZE": "8", "HOROVOD_LOCAL_RANK": "1", "HOROVOD_LOCAL_SIZE": "4", **MEETING}
INTEL_MPI = {"PMI_RANK": "5", "PMI_SIZE": "8", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "4", **MEETING}
SLURM = {"SLURM_PROCID": "5", "SLURM_NTASKS": "8", "SLURM_LOCALID": "1", "SLURM_STEP_NODELIST": "n[1-2]", **MEETING}


def place(world: World) -> tuple[int, int, int, int]:
    return world.rank, world.size, world.local_rank, world.local_size


@pytest.mark.parametrize(("environment", "expected"), [
    (TORCHRUN, (5, 8, 1, 4)),
    (OPEN_MPI, (5, 8, 1, 4)),
    (HOROVODRUN, (5, 8, 1, 4)),
    (INTEL_MPI, (5, 8, 1, 4)),
    (SLURM, (5, 8, 1, 8)),
    # MPICH's hydra sets no local names.
    ({"PMI_RANK": "2", "PMI_SIZE": "3", **MEETING}, (2, 3, 2, 3)),
    # torchrun inside a Slurm step: the innermost launcher is the one that started this process.
    ({**SLURM, **TORCHRUN, "RANK": "3"}, (3, 8, 1, 4)),
    ({**SLURM, **OPEN_MPI, "OMPI_COMM_WORLD_RANK": "2"}, (2, 8, 1, 4)),
])
def test_every_launcher_is_understood(environment: dict[str, str], expected: tuple[int, int, int, int]) -> None:
    world = read_world(environment)
    assert place(world) == expected
    assert (world.master_addr, world.master_port) == ("10.0.0.1", 29500)
    assert not world.is_first


@pytest.mark.parametrize("environment", [
    {},
    {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"},
    {"WORLD_SIZE": "1", "RANK": "0"},
    {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "1"},
    # Inside an sbatch script, not under srun, Slurm's names describe the job and not this process.
    {"SLURM_PROCID": "0", "SLURM_NTASKS": "8", **MEETING},
])
def test_a_world_of_one(environment: dict[str, str]) -> None:
    world = read_world(environment)
    assert place(world) == (0, 1, 0, 1)
    assert world.is_first


def test_what_torchrun_says_about_its_store_and_restarts() -> None:
    world = read_world({**TORCHRUN, "TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "3"})
    assert world.store_is_hosted
    assert world.attempt == "3"
    plain = read_world(TORCHRUN)
    assert plain.comm_cpus == ()
    assert read_world({**TORCHRUN, "LAUNCH_COMM_CPUS": "7,26-27"}).comm_cpus == (7, 26, 27)
    assert not plain.store_is_hosted
    assert plain.attempt == "0"


@pytest.mark.parametrize(("change", "named"), [
    ({"RANK": "eight"}, "RANK='eight'"),
    ({"RANK": ""}, "RANK=''"),
    ({"RANK": "1.0"}, "RANK='1.0'"),
    ({"WORLD_SIZE": "2(x4)"}, "WORLD_SIZE='2(x4)'"),
    ({"RANK": "8"}, "RANK=8 is no rank of WORLD_SIZE=8"),
    ({"RANK": "-1"}, "RANK=-1"),
    ({"RANK": "0", "WORLD_SIZE": "0"}, "WORLD_SIZE=0"),
    ({"LOCAL_RANK": "x"}, "LOCAL_RANK='x'"),
    ({"LOCAL_WORLD_SIZE": "?"}, "LOCAL_WORLD_SIZE='?'"),
    ({"MASTER_PORT": "http"}, "MASTER_PORT='http'"),
    ({"MASTER_PORT": "99999"}, "MASTER_PORT=99999"),
    ({"MASTER_PORT": "0"}, "MASTER_PORT=0"),
    ({"MASTER_PORT": "-5"}, "MASTER_PORT=-5"),
    ({"MASTER_ADDR": ""}, "MASTER_ADDR=''"),
    ({"LAUNCH_COMM_CPUS": "1-"}, "LAUNCH_COMM_CPUS='1-'"),
])
def test_broken_values_are_named(change: dict[str, str], named: str) -> None:
    with pytest.raises(WorldError) as caught:
        read_world({**TORCHRUN, **change})
    assert named in caught.value.fact
    assert caught.value.remedy


@pytest.mark.parametrize("missing", ["RANK", "WORLD_SIZE"])
def test_half_a_place_is_not_taken_for_a_world_of_one(missing: str) -> None:
    with pytest.raises(WorldError, match=rf"is set, but {missing} is not"):
        read_world({name: value for name, value in TORCHRUN.items() if name != missing})


@pytest.mark.parametrize("missing", ["MASTER_ADDR", "MASTER_PORT"])
@pytest.mark.parametrize("environment", [TORCHRUN, OPEN_MPI, HOROVODRUN, INTEL_MPI, SLURM])
def test_ranks_that_were_not_told_where_to_meet(environment: dict[str, str], missing: str) -> None:
    world = read_world({name: value for name, value in environment.items() if name != missing})
    assert (world.master_addr, world.master_port) == ("", 0)
    with pytest.raises(WorldError, match="MASTER_ADDR and MASTER_PORT are not set"):
        world.require_address()
    read_world(environment).require_address()
    World().require_address()


@pytest.mark.parametrize(("environment", "launcher"), [
    (TORCHRUN, "launch or torchrun"), (OPEN_MPI, "Open MPI"), (HOROVODRUN, "horovodrun"),
    (INTEL_MPI, "Intel MPI or MPICH"), (SLURM, "Slurm"), ({}, ""), ({**OPEN_MPI, **TORCHRUN}, "launch or torchrun"),
])
def test_the_launcher_has_a_name(environment: dict[str, str], launcher: str) -> None:
    assert read_world(environment).launcher == launcher


def test_a_rank_that_joins_is_none_yet() -> None:
    world = read_world({**TORCHRUN, "LAUNCH_ELASTIC": "1", "LAUNCH_JOIN": "1"})
    assert place(world) == (0, 1, 0, 1)
    assert world.join
    assert not read_world({**TORCHRUN, "LAUNCH_ELASTIC": "1"}).join
