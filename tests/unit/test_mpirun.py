"""mpirun: which one it is, and the whole command that is executed."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from distrib.errors import WorldError
from launch.cluster import Cluster, Mpirun
from launch.environment import locate, tasks_per_node, travelling
from launch.mpirun import Mpi, find_mpi, recognise, starter_argv

OPEN_MPI_4 = "mpirun (Open MPI) 4.1.4\n\nReport bugs to http://www.open-mpi.org/community/help/\n"
OPEN_MPI_5 = "mpirun (Open MPI) 5.0.11\n\nReport bugs to https://www.open-mpi.org/community/help/\n"
INTEL = ("Intel(R) MPI Library for Linux* OS, Version 2021.19 Build 20260310 (id: 1a2b3c)\n"
         "Copyright 2003-2026, Intel Corporation.\n")
MPICH = "HYDRA build details:\n    Version:                                 4.0.2\n    Release Date:   x\n"


@pytest.mark.parametrize(("text", "flavour"), [
    (OPEN_MPI_4, ("Open MPI", 4)), (OPEN_MPI_5, ("Open MPI", 5)), (INTEL, ("Intel MPI", 2021)), (MPICH, ("MPICH", 4)),
    ("mpirun (prterun) 3", ("", 0)), ("", ("", 0)),
])
def test_recognise(text: str, flavour: tuple[str, int]) -> None:
    assert recognise(text) == flavour


def test_an_mpirun_that_can_not_be_read_is_told() -> None:
    me = os.geteuid()
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder, "mpirun")
        program.touch(0o111)
        Path(folder).chmod(0o711)
        cluster = Cluster(launcher="mpirun", hosts=["node1"], mpirun=Mpirun(program=str(program)))
        try:
            if me == 0:
                os.seteuid(65534)  # root may read anything
            with pytest.raises(WorldError, match=r"mpirun can not be read: Permission denied\. Nothing was started"):
                find_mpi(cluster)
        finally:
            os.seteuid(me)


WORDS = ["/py", "rank.py", "/my job/$(x)", "1"]


def test_commands() -> None:
    hosts, counts = ["node1", "node2"], [2, 1]
    assert starter_argv(Mpi("/m/mpirun", "Open MPI", 5), hosts, counts, ["--mca=x"], WORDS, True) == [
        "/m/mpirun", "--allow-run-as-root", "--host", "node1:2,node2:1", "-np", "3", "--map-by", "slot", "--bind-to",
        "none", "--mca=x", *WORDS]
    assert starter_argv(Mpi("/m/mpirun", "MPICH", 4), hosts, counts, [], WORDS, True) == [
        "/m/mpirun", "-hosts", "node1:2,node2:1", "-np", "3", "-bind-to", "none", *WORDS]
    assert starter_argv(Mpi("/m/mpirun", "Intel MPI", 2021), hosts, counts, [], WORDS, False) == [
        "/m/mpirun", "-hosts", "node1:2,node2:1", "-np", "3", "-genv", "I_MPI_PIN", "0", *WORDS]


def test_each_says_its_rank_in_its_own_way() -> None:
    open_mpi = {"OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_RANK": "1",
                "OMPI_COMM_WORLD_LOCAL_SIZE": "2", "SLURM_PROCID": "0", "SLURM_STEP_TASKS_PER_NODE": "1"}
    hydra = {"PMI_RANK": "3", "PMI_SIZE": "4", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}
    slurm = {"SLURM_PROCID": "4", "SLURM_LOCALID": "0", "SLURM_NODEID": "2", "SLURM_STEP_TASKS_PER_NODE": "2(x2),1",
             "PMI_RANK": "4", "PMI_SIZE": "5"}
    assert locate(open_mpi) == locate(hydra) == (3, 4, 1, 2)
    assert locate(slurm) == (4, 5, 0, 1)
    assert locate({"SLURM_PROCID": "0", "PMI_RANK": "0"}) is None
    assert tasks_per_node("2(x3),1") == [2, 2, 2, 1]
    for text in ("", "x", "2(x)", "2(x3"):
        with pytest.raises(ValueError, match="no list of tasks"):
            tasks_per_node(text)


def test_what_travels() -> None:
    stays = ["HOSTNAME", "SSH_AUTH_SOCK", "SLURM_JOB_ID", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "TMPDIR", "DISPLAY",
             "PWD", "OMP_PROC_BIND", "XDG_RUNTIME_DIR", "BASH_FUNC_module%%"]
    goes = ["PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "MY_TOKEN", "OMP_NUM_THREADS", "CCL_LOG_LEVEL", "HOME"]
    assert set(travelling(dict.fromkeys([*stays, *goes], "x"))) == set(goes)
