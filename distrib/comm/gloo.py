"""gloo: TCP between any hosts, part of every torch."""

from __future__ import annotations

import datetime
import importlib.metadata
import ipaddress
import os
from typing import Any

from distrib.world import World


def prepare(world: World) -> str:
    """Set up this process for gloo; local."""
    if is_loopback(world.master_addr):
        # Ranks that meet on loopback are on one host. Left alone, gloo looks the host's own name up,
        # which fails or leads astray where the name is not in /etc/hosts.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    return "gloo"


def is_loopback(address: str) -> bool:
    """Whether an address is this machine's own, by its look alone."""
    if address == "localhost":
        return True
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


def missing() -> str | None:
    """Nothing: it is part of torch."""
    return None


def version() -> str:
    """Of torch, which holds it."""
    return "torch " + importlib.metadata.version("torch")


def create_apart(store: Any, rank: int, size: int, timeout: datetime.timedelta) -> Any:
    """A group outside torch's table of groups; see `distrib.comm.table.creator`."""
    import torch.distributed as dist

    return dist.ProcessGroupGloo(store, rank, size, timeout)
