"""The cluster file: where and how ranks are started."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from distrib.documents import Section, apply_overrides, read_yaml, validate

LAUNCHERS = {
    "local": "launch.local:run_plan",
}
"""Ways to start ranks: name -> module:attribute, imported on use; called with (plan, Options) -> exit code."""

OWN_NAMES = frozenset({
    "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE", "ROLE_NAME", "ROLE_RANK",
    "ROLE_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_ERROR_FILE",
})
"""Environment names that say which rank a process is; only the launcher sets them."""


def _known_launcher(name: str) -> str:
    if name not in LAUNCHERS:
        raise ValueError(f"no such launcher; there is {', '.join(LAUNCHERS)}")
    return name


def _printable(text: str) -> str:
    if not text.strip() or not text.isprintable():
        raise ValueError("must be text on one line")
    return text


def _no_truth(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("write in quotes what the variable should hold")  # is it 1, true or True?
    return value


def _environment(values: dict[str, str | int | float]) -> dict[str, str | int | float]:
    for name, value in values.items():
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise ValueError(f"{name!r} is no name of an environment variable")
        if name in OWN_NAMES:
            raise ValueError(f"the launcher itself sets {name}, for each rank")
        if "\0" in str(value):
            raise ValueError(f"{name} holds a zero byte")
    return values


Value = Annotated[str | int | float, BeforeValidator(_no_truth)]


class Cluster(Section):
    """One cluster file; every key may be left out."""

    name: Annotated[str, AfterValidator(_printable)] = "local"
    """What the cluster is called in messages."""
    launcher: Annotated[str, AfterValidator(_known_launcher)] = "local"
    """How ranks are started; local: on this machine."""
    ranks_per_node: Annotated[int, Field(ge=1, le=4096)] | Literal["auto"] = "auto"
    """auto: one rank for each NUMA node, or as many as have threads_per_rank cores each, where that is given."""
    ranks_per_numa_node: Annotated[int, Field(ge=1, le=4096)] | None = None
    """So many ranks for each NUMA node that has cores, where ranks_per_node is auto."""
    threads_per_rank: Annotated[int, Field(ge=1, le=4096)] | None = None
    """Threads a rank computes with (OMP_NUM_THREADS); by default as many as it has physical cores."""
    comm_cores: Annotated[int, Field(ge=0, le=4096)] = 0
    """Physical cores of each rank that are set aside for its communication threads."""
    hyper_threads: bool = False
    """Compute on all hardware threads of a core, not on the first alone."""
    allocator: Literal["auto", "tcmalloc", "jemalloc", "system"] = "auto"
    """The malloc of the ranks. auto: tcmalloc where it is installed, else the system's."""
    env: Annotated[dict[str, Value], AfterValidator(_environment)] = Field(default_factory=dict)
    """Environment of every rank, over what the launcher and the shell set."""
    grace_s: Annotated[float, Field(ge=0, le=3600)] = 10.0
    """Seconds between SIGTERM and SIGKILL for the other ranks, when one has failed."""
    stop_grace_s: Annotated[float, Field(ge=0, le=86400)] = 60.0
    """Seconds that ranks have to save and end after Ctrl-C or SIGTERM, before SIGKILL."""


def load_cluster(path: Path, overrides: Sequence[str] = ()) -> Cluster:
    """Read a cluster file and apply ``key=value`` overrides. Raises ConfigError."""
    return validate(Cluster, apply_overrides(read_yaml(path, "cluster file"), overrides), f"the cluster file {path}")
