"""Who this process is among the ranks. The only reader of the launchers' environment."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass

from distrib.errors import WorldError

# The launcher and its names of (rank, size, local rank, local size), first match wins. Slurm's local size is a
# pattern such as "2(x3)", so it is left out.
_NAMES = (
    ("launch or torchrun", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"),
    ("horovodrun", "HOROVOD_RANK", "HOROVOD_SIZE", "HOROVOD_LOCAL_RANK", "HOROVOD_LOCAL_SIZE"),
    ("Open MPI", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK",
     "OMPI_COMM_WORLD_LOCAL_SIZE"),
    ("Intel MPI or MPICH", "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
    ("Slurm", "SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", ""),
)


@dataclass(frozen=True)
class World:
    """Rank and world size of this process, on this node and overall, and where the ranks meet."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    master_addr: str = "127.0.0.1"
    master_port: int = 0
    host: str = "localhost"
    store_is_hosted: bool = False
    """Whether the launcher itself keeps the rendezvous store at the master's address."""
    attempt: str = "0"
    """Number of this start, where the launcher counts restarts."""
    launcher: str = ""
    """Who started this rank, by name; nobody if empty."""
    comm_cpus: tuple[int, ...] = ()
    """Hardware threads that `launch` set aside for threads that communicate."""
    elastic: bool = False
    """Whether the launcher lets the others live when a rank is lost, so that they can go on."""
    join: bool = False
    """Whether this process stands in for a rank that an elastic run lost: it is to join that run, as no rank yet."""

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, the one that speaks and writes."""
        return self.rank == 0

    def require_address(self) -> None:
        """Raise WorldError if the ranks were not told where to meet."""
        if self.size > 1 and not self.master_addr:
            name = next((size for launcher, _, size, *_ in _NAMES if launcher == self.launcher), "WORLD_SIZE")
            raise WorldError(f"{name}={self.size}, but MASTER_ADDR and MASTER_PORT are not set",
                             "the ranks can not find each other", "start them with `launch run`, or set both")


def read_world(environment: Mapping[str, str] = os.environ) -> World:
    """The world that the launcher's environment describes; a world of one if there is none.

    Without MASTER_ADDR and MASTER_PORT both are left empty: some backends let the ranks meet by other means.
    """
    host = socket.gethostname()
    if ("RANK" in environment) != ("WORLD_SIZE" in environment):
        have, lack = ("RANK", "WORLD_SIZE") if "RANK" in environment else ("WORLD_SIZE", "RANK")
        raise WorldError(f"{have}={environment[have]} is set, but {lack} is not", "nothing was started",
                         f"start it with `launch run` or torchrun, or unset {have}")
    for launcher, rank_name, size_name, local_rank_name, local_size_name in _NAMES:
        if rank_name not in environment or size_name not in environment:
            continue
        rank, size = _number(environment, rank_name), _number(environment, size_name)
        if rank_name == "SLURM_PROCID" and "SLURM_STEP_NODELIST" not in environment:
            continue  # inside sbatch's own script, not under srun
        if environment.get("LAUNCH_JOIN") == "1":
            return World(host=host, launcher=launcher, comm_cpus=_cpus(environment), elastic=True, join=True)
        if not 0 <= rank < size:
            raise WorldError(f"{rank_name}={rank} is no rank of {size_name}={size}", "nothing was started",
                             "start it with `launch run`, torchrun, mpirun or srun")
        if size == 1:
            return World(host=host, launcher=launcher)
        address, port = _meeting_place(environment)
        return World(
            rank, size,
            _number(environment, local_rank_name) if local_rank_name in environment else rank,
            _number(environment, local_size_name) if local_size_name in environment else size,
            address, port, host,
            environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
            environment.get("TORCHELASTIC_RESTART_COUNT", "0"),
            launcher,
            _cpus(environment),
            environment.get("LAUNCH_ELASTIC") == "1",
        )
    return World(host=host)


def without_world(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment without what says which rank a process is: for a program that a rank starts by itself."""
    own = {name for _, *names in _NAMES for name in names} | {
        "MASTER_ADDR", "MASTER_PORT", "GROUP_RANK", "GROUP_WORLD_SIZE", "ROLE_NAME", "ROLE_RANK", "ROLE_WORLD_SIZE"}
    return {name: value for name, value in environment.items()
            if name not in own and not name.startswith(("LAUNCH_", "TORCHELASTIC_"))}


def _meeting_place(environment: Mapping[str, str]) -> tuple[str, int]:
    if not {"MASTER_ADDR", "MASTER_PORT"} <= environment.keys():
        return "", 0
    port = _number(environment, "MASTER_PORT")
    if not 0 < port < 1 << 16 or not environment["MASTER_ADDR"]:
        raise WorldError(f"MASTER_ADDR={environment['MASTER_ADDR']!r} MASTER_PORT={port} is no address",
                         "the ranks can not find each other", "start them with `launch run`, or correct both")
    return environment["MASTER_ADDR"], port


def _cpus(environment: Mapping[str, str]) -> tuple[int, ...]:
    """The kernel's list of numbers in LAUNCH_COMM_CPUS, such as 26-27."""
    text = environment.get("LAUNCH_COMM_CPUS", "")
    if not re.fullmatch(r"(\d+(-\d+)?(,\d+(-\d+)?)*)?", text):
        raise WorldError(f"LAUNCH_COMM_CPUS={text!r} is no list of CPUs", "nothing was started",
                         "leave it to `launch`, or unset it")
    bounds = [part.split("-") for part in text.split(",") if part]
    return tuple(cpu for bound in bounds for cpu in range(int(bound[0]), int(bound[-1]) + 1))


def _number(environment: Mapping[str, str], name: str) -> int:
    try:
        return int(environment[name])
    except ValueError:
        raise WorldError(f"{name}={environment[name]!r} is not a number", "nothing was started",
                         "start it with `launch run`, torchrun, mpirun or srun") from None
