"""horovod: Horovod's collectives over MPI or gloo, under `horovodrun`, `mpirun`, `launch run`, torchrun or alone.

Horovod itself is one for each process. A launcher that brings Horovod's or Open MPI's own rendezvous has it started
at once, and it then lasts until the process ends (MPI can not start twice). Under any other launcher it is started
for each group, over its gloo, and ended with it.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import importlib.util
import re
import urllib.parse
from collections.abc import Callable
from typing import Any

from distrib.world import World

REMEDY = "build it with `distrib backends --build horovod`"
OWN_LAUNCHERS = ("horovodrun", "Open MPI", "Intel MPI or MPICH")

_world = World()


def missing() -> str | None:
    """What is missing, and the remedy; None if nothing is. Local, and quick."""
    if importlib.util.find_spec("horovod") is None:
        return f"Horovod is not installed; {REMEDY}"
    if importlib.util.find_spec("horovod.torch") is None:
        return f"Horovod was built without torch; {REMEDY}"
    if _stale():
        return f"Horovod was built for another torch than {importlib.metadata.version('torch')}; {REMEDY}"
    try:
        import horovod.torch  # noqa: F401
    except (ImportError, OSError) as error:
        return f"Horovod does not load ({str(error).splitlines()[0]}); {REMEDY}"
    return None


def version() -> str:
    """Of the installed Horovod."""
    return importlib.metadata.version("horovod")


def build(tell: Callable[[str], None]) -> None:
    """Build and install it. Raises MissingPartError or StorageError."""
    from distrib.comm.horovod_build import build as build_wheel

    build_wheel(tell)
    importlib.invalidate_caches()


def prepare(world: World) -> str:
    """Register Horovod with c10d. Collective where the launcher brings Horovod's rendezvous, else local."""
    global _world
    import torch.distributed as dist

    from distrib.comm import horovod_start

    _world = world
    if _started_by_launcher(world):
        horovod_start.start_under_launcher()
    if "horovod" not in dist.Backend.backend_list:
        dist.Backend.register_backend("horovod", _create, extended_api=True, devices=["cpu"])
    return "horovod"


def announce(content: bytes | None) -> bytes:
    """Rank 0's bytes on every rank, through Horovod, where it runs before the ranks have a store. Collective."""
    import horovod.torch as hvd

    result: bytes = hvd.broadcast_object(content, root_rank=0, name="distrib.announce")
    return result


def _started_by_launcher(world: World) -> bool:
    return world.size > 1 and world.launcher in OWN_LAUNCHERS


def _create(options: Any, _: Any) -> Any:
    """c10d's call for the group of all ranks; subgroups are made by that group itself."""
    from distrib.comm import horovod_start
    from distrib.comm.horovod_group import HorovodGroup

    timeout: datetime.timedelta = options.timeout
    ranks = list(range(options.group_size))
    if _started_by_launcher(_world):
        return HorovodGroup(ranks, options.group_rank, options.group_id or "world", timeout)
    stop = horovod_start.start_alone(_world, options.store, timeout)
    return HorovodGroup(ranks, options.group_rank, options.group_id or "world", timeout, stop)


def _stale() -> bool:
    """Whether `distrib backends --build` made it for another torch. pip notes which wheel it came from."""
    noted = importlib.metadata.distribution("horovod").read_text("direct_url.json")
    made_for = re.search(r"-torch([^/-]+)-", urllib.parse.unquote(noted)) if noted else None
    return made_for is not None and made_for[1] != importlib.metadata.version("torch")
