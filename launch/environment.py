"""The one environment that ranks get under every launcher: torchrun's names, threads, allocator. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from launch.placement import Place
from launch.settings import removed_names, settings_for
from launch.topology import format_list

OF_ITS_HOST = re.compile(
    r"_|PWD|OLDPWD|SHLVL|HOSTNAME|HOST|DISPLAY|TERM_.*|TMUX.*|STY|WINDOWID|XDG_.*|DBUS_.*|SSH_.*|GPG_.*|MAIL|TTY"
    r"|TMPDIR|KRB5CCNAME|BASH_FUNC_.*|SLURM.*|SBATCH_.*|SALLOC_.*|SRUN_.*|PMI.*|OMPI_.*|PRTE_.*|HYDRA_.*|HYDI?_.*"
    r"|MPI_LOCAL.*|MPIR_.*|I_MPI_HYDRA.*|TORCHELASTIC_.*|NOTIFY_SOCKET|INVOCATION_ID|JOURNAL_STREAM", re.ASCII)
"""What means something on one host or in one job only, and does not travel to another."""


@dataclass(frozen=True)
class Seat:
    """Which rank a process is, and where the ranks meet."""

    rank: int
    size: int
    local_rank: int
    local_size: int
    node: int
    num_nodes: int
    master_addr: str
    master_port: str
    restarts: int = 0
    """How often the job was started before."""


def rank_environment(seat: Seat, place: Place | None, allocator: str, library: Path | None,
                     mine: Mapping[str, str], preload: str | None, interface: str | None = None,
                     elastic: bool = False) -> dict[str, str]:
    """What is set for one rank, over the inherited environment.

    ``mine`` is the cluster file's ``env``; ``preload`` is the LD_PRELOAD that was there before. Without a place,
    what follows from it is left out.
    """
    values = settings_for(place.threads, allocator) if place else {}
    if interface:
        values |= dict.fromkeys(("GLOO_SOCKET_IFNAME", "FI_TCP_IFACE", "CCL_KVS_IFACE"), interface)
    if place and place.comm_cpus:
        values["LAUNCH_COMM_CPUS"] = format_list(place.comm_cpus)
    values |= mine
    if library:
        values["LD_PRELOAD"] = ":".join(filter(None, (str(library), preload)))
    if elastic:
        values["LAUNCH_ELASTIC"] = "1"
    # torchrun's names, which torch and most training scripts read.
    return values | {
        "RANK": str(seat.rank), "WORLD_SIZE": str(seat.size), "LOCAL_RANK": str(seat.local_rank),
        "LOCAL_WORLD_SIZE": str(seat.local_size), "GROUP_RANK": str(seat.node), "GROUP_WORLD_SIZE": str(seat.num_nodes),
        "ROLE_NAME": "default", "ROLE_RANK": str(seat.rank), "ROLE_WORLD_SIZE": str(seat.size),
        "MASTER_ADDR": seat.master_addr, "MASTER_PORT": seat.master_port,
        "TORCHELASTIC_RESTART_COUNT": str(seat.restarts),
    }


def travelling(environment: Mapping[str, str]) -> dict[str, str]:
    """The part of a shell's environment that ranks on other hosts get."""
    removed = set(removed_names(environment))
    return {name: value for name, value in environment.items()
            if name not in removed and not OF_ITS_HOST.fullmatch(name)}


def locate(environment: Mapping[str, str]) -> tuple[int, int, int, int] | None:
    """(rank, size, local rank, local size) as mpirun or srun say it to each process they start; None if nobody does.

    Raises ValueError for what is no number.
    """
    for names in (
        ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"),
        ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),  # MPICH and Intel MPI
    ):
        if all(name in environment for name in names):
            rank, size, local_rank, local_size = (int(environment[name]) for name in names)
            return rank, size, local_rank, local_size
    if "SLURM_PROCID" in environment and "SLURM_STEP_TASKS_PER_NODE" in environment:
        counts = tasks_per_node(environment["SLURM_STEP_TASKS_PER_NODE"])
        return (int(environment["SLURM_PROCID"]), sum(counts), int(environment["SLURM_LOCALID"]),
                counts[int(environment["SLURM_NODEID"])])
    return None


def tasks_per_node(text: str) -> list[int]:
    """Slurm's ``2(x3),1`` as [2, 2, 2, 1]. Raises ValueError."""
    counts: list[int] = []
    for part in text.split(","):
        found = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
        if not found:
            raise ValueError(f"{text!r} is no list of tasks")
        counts += [int(found[1])] * int(found[2] or 1)
    return counts


def settled(names: Iterable[str], mine: Mapping[str, str]) -> tuple[str, ...]:
    """Those of ``names`` that ranks must not inherit and the cluster file does not set."""
    return tuple(name for name in removed_names(names) if name not in mine)
