"""What the launcher changes in the environment of ranks, and why: the whole list."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase


@dataclass(frozen=True)
class Setting:
    """One environment variable that every rank gets; ``{threads}`` stands for the rank's compute threads."""

    name: str
    value: str
    why: str
    allocator: str = ""
    """Set only with this allocator; empty: always."""


SETTINGS = (
    Setting("OMP_NUM_THREADS", "{threads}",
            "as many threads as the rank has cores; left alone, OpenMP or an MPI in the environment decides"),
)

# Left out after thought: OMP_PROC_BIND ties the main thread to one core, and every thread that it starts
# later, such as those that decode images, inherits that one core.

REMOVED = (
    ("TORCHELASTIC_*", "describes a rank of the torchrun that this launcher was started under"),
    ("LAUNCH_ELASTIC", "the same of a `launch` around this one"),
    ("LAUNCH_JOIN", "as LAUNCH_ELASTIC"),
    ("OMPI_COMM_WORLD_*", "the same of Open MPI; besides, it makes torch use one thread"),
    ("PMI_*", "the same of MPICH and Intel MPI"),
    ("PMIX_*", "the same of Open MPI and Slurm"),
    ("MPI_LOCAL*", "the same of MPICH and Intel MPI; besides, it makes torch use one thread"),
    ("OMP_PROC_BIND", "would tie threads to cores a second time; ranks are already pinned"),
    ("OMP_PLACES", "as OMP_PROC_BIND"),
    ("GOMP_CPU_AFFINITY", "as OMP_PROC_BIND"),
    ("KMP_AFFINITY", "as OMP_PROC_BIND"),
    ("MKL_NUM_THREADS", "OMP_NUM_THREADS says it, for this rank"),
    ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS says it, for this rank"),
)
"""Inherited variables that ranks do not get, as shell patterns; a cluster file's `env` may set them anew."""


def settings_for(threads: int, allocator: str) -> dict[str, str]:
    """The variables of SETTINGS for a rank with so many compute threads and this allocator."""
    return {
        setting.name: setting.value.replace("{threads}", str(threads))
        for setting in SETTINGS if setting.allocator in ("", allocator)
    }


def removed_names(names: Iterable[str]) -> tuple[str, ...]:
    """Those of ``names`` that ranks must not inherit; sorted."""
    return tuple(sorted(name for name in names if any(fnmatchcase(name, pattern) for pattern, _ in REMOVED)))
