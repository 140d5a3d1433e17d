"""What ``comm.backend: auto`` stands for, and why. All ranks choose the same."""

from __future__ import annotations

import json
import os
from typing import Any, NamedTuple

from distrib.comm.table import backend_module
from distrib.errors import counted
from distrib.world import World


class Choice(NamedTuple):
    backend: str
    why: str
    """For the log: what was found."""


def choose_alone(world: World) -> Choice | None:
    """The choice that needs no word from other ranks; None if theirs matter."""
    if world.size == 1:
        return Choice("gloo", "a single rank sends nothing")
    if not world.master_addr and world.launcher == "horovodrun":
        return Choice("horovod", "horovodrun started the ranks")
    return None


def choose_together(world: World, store: Any) -> Choice:
    """oneccl if every rank has it and a core of its own, else gloo. Collective, through the ranks' common store.

    Raises RuntimeError if a rank does not come within the store's time.
    """
    lack = backend_module("oneccl").missing() or _crowded(world)
    store.set(f"lack/{world.rank}", json.dumps(f"rank {world.rank} on {world.host}: {lack}" if lack else None))
    if world.is_first:
        said = (_lack_of(rank, store) for rank in range(world.size))
        store.set("lack", json.dumps(next((one for one in said if one), None)))
    lack = json.loads(store.get("lack"))
    if lack is not None:
        return Choice("gloo", f"no oneccl: {lack}")
    return Choice("oneccl", "every rank has it: shared memory within a host, libfabric between hosts")


def _crowded(world: World) -> str | None:
    cores = os.cpu_count() or 1
    if world.local_size <= cores:
        return None
    return f"it polls, and {world.local_size} ranks share {counted(cores, 'core')}"


def _lack_of(rank: int, store: Any) -> str | None:
    try:
        said: str | None = json.loads(store.get(f"lack/{rank}"))
    except RuntimeError as error:
        raise RuntimeError(f"rank {rank} did not come in time") from error
    return said
