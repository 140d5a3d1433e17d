"""gloo: TCP between any hosts, part of every torch."""

from __future__ import annotations

import ipaddress
import os

from distrib.world import World


def prepare(world: World) -> str:
    """Set up this process for gloo; local."""
    if _is_loopback(world.master_addr):
        # Ranks that meet on loopback are on one host. Left alone, gloo looks the host's own name up,
        # which fails or leads astray where the name is not in /etc/hosts.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    return "gloo"


def _is_loopback(address: str) -> bool:
    if address == "localhost":
        return True
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False
