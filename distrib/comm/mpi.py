"""mpi: c10d over MPI itself, where torch was compiled against one. Rank and size are then MPI's."""

from __future__ import annotations

import importlib.metadata

from distrib.errors import WorldError
from distrib.world import World


def missing() -> str | None:
    """What is missing, and the remedy; None if nothing is."""
    import torch.distributed as dist

    if dist.is_mpi_available():
        return None
    return ("this torch was compiled without MPI; compile torch from source on a machine with MPI, or choose horovod, "
            "which runs under mpirun with any torch")


def version() -> str:
    """Of torch, which holds it."""
    return "torch " + importlib.metadata.version("torch")


def prepare(world: World) -> str:
    """Check that MPI started this process; local. Raises WorldError."""
    if world.size > 1 and world.launcher not in ("Open MPI", "Intel MPI or MPICH"):
        raise WorldError(f"comm.backend = mpi, but {world.launcher} started this rank", "MPI would see a world of one",
                         "start it with mpirun, or choose another backend")
    return "mpi"
