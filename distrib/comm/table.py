"""The table of communication backends: a name to a function that makes torch able to use it."""

from __future__ import annotations

import datetime
import importlib
from collections.abc import Callable
from types import ModuleType
from typing import Any

from distrib.errors import ConfigError
from distrib.world import World

# name -> module:function taking the World, preparing this process, and returning c10d's name for it. Beside it the
# module offers
#   missing() -> str | None: what is missing and the remedy, in one line; None if it can be used
#   version() -> str
# and, if it can, announce (see `announcer`), create_apart (see `creator`), and build(tell), which puts into place what
# is missing.
BACKENDS = {
    "gloo": "distrib.comm.gloo:prepare",
    "oneccl": "distrib.comm.oneccl:prepare",
    "horovod": "distrib.comm.horovod:prepare",
    "oneccl-bind-pt": "distrib.comm.oneccl_bind:prepare",
    "mpi": "distrib.comm.mpi:prepare",
}


def prepare_backend(name: str, world: World) -> str:
    """Prepare this process for a backend of the table; c10d's name for it.

    Raises ConfigError for an unknown one, and for one that is missing.
    """
    if name not in BACKENDS:
        raise ConfigError(f"comm.backend = {name!r} is unknown", "nothing was started",
                          f"choose one of auto, {', '.join(BACKENDS)}")
    backend = backend_module(name)
    if (lack := backend.missing()) is not None:
        raise ConfigError(f"comm.backend = {name} can not be used: {lack}", "nothing was started")
    prepared: str = getattr(backend, BACKENDS[name].partition(":")[2])(world)
    return prepared


def backend_module(name: str) -> ModuleType:
    """The module behind a name of the table."""
    return importlib.import_module(BACKENDS[name].partition(":")[0])


def announcer(name: str) -> Callable[[bytes | None], bytes] | None:
    """How a backend gives rank 0's bytes to every rank before they have a store; None if it can not.

    The function is collective; ranks other than 0 pass None.
    """
    announce: Callable[[bytes | None], bytes] | None = getattr(backend_module(name), "announce", None)
    return announce


def creator(name: str) -> Callable[[Any, int, int, datetime.timedelta], Any] | None:
    """How a backend makes a group outside torch's table of groups: (store, rank, size, timeout) -> c10d's backend.

    None if it can make but one in the life of a process.
    """
    create: Callable[[Any, int, int, datetime.timedelta], Any] | None
    create = getattr(backend_module(name), "create_apart", None)
    return create
