"""What names of hosts mean here, and over which address the training would talk."""

from __future__ import annotations

import os
import socket

import psutil

from distrib.comm.oneccl import interface_of, own_address


def resolve(name: str) -> list[str]:
    """Addresses that a name stands for on this host; empty if it stands for none."""
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return []
    return sorted({str(entry[4][0]) for entry in found})


def own_addresses() -> list[str]:
    """Addresses of this host's interfaces, without those that only it can reach."""
    entries = [entry.address.partition("%")[0] for entries in psutil.net_if_addrs().values() for entry in entries
               if entry.family in (socket.AF_INET, socket.AF_INET6)]
    return sorted(address for address in entries if not address.startswith(("127.", "fe80:")) and address != "::1")


def choose_address(other: str) -> tuple[str, str | None]:
    """(address, interface) for talking with ``other``: of GLOO_SOCKET_IFNAME if set, else of the way there.

    Raises OSError if there is none.
    """
    wished = os.environ.get("GLOO_SOCKET_IFNAME")
    if wished is not None:
        for entry in psutil.net_if_addrs().get(wished, []):
            if entry.family == socket.AF_INET:
                return entry.address, wished
        raise OSError(f"the interface {wished} is not there or has no address")
    address = own_address(other)
    return address, interface_of(address)
