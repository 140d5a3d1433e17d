"""Where the ranks meet: the store through which they exchange addresses."""

from __future__ import annotations

import contextlib
import datetime
import json
import socket
import threading
import time
from collections.abc import Callable

import psutil
from torch._C._distributed_c10d import HashStore, PrefixStore, Store, TCPStore

from distrib.world import World

CONNECT_S = 3.0
_TRY_S = 1.0


def open_store(world: World, timeout: datetime.timedelta,
               announce: Callable[[bytes | None], bytes] | None = None) -> Store:
    """The ranks' common store. Collective.

    It is at the world's address, if it has one; else rank 0 opens it on a free port and announces that, if the
    backend can. Raises WorldError if the ranks have no place to meet, RuntimeError if they do not meet there.
    """
    if world.size == 1:
        return PrefixStore("distrib", HashStore())
    if world.master_addr or announce is None:
        world.require_address()
        if not world.is_first:
            _await_rank_0(world, timeout.total_seconds())
        store = TCPStore(
            world.master_addr, world.master_port, world.size,
            is_master=world.is_first and not world.store_is_hosted, timeout=timeout, wait_for_workers=False,
        )
    elif world.is_first:
        store = TCPStore("localhost", 0, world.size, is_master=True, timeout=timeout, wait_for_workers=False)
        announce(json.dumps([world.host, _own_addresses(), store.port]).encode())
    else:
        host, addresses, port = json.loads(announce(None))
        address = "localhost" if host == world.host else _reachable(addresses, port)
        store = TCPStore(address, port, world.size, is_master=False, timeout=timeout, wait_for_workers=False)
    # A launcher's own store may hold another attempt's keys.
    return PrefixStore(f"distrib/{world.attempt}", store)


def reach_store(address: str, port: int, timeout: datetime.timedelta, check: Callable[[], None]) -> Store:
    """A store that another rank keeps. Raises what ``check`` raises, which is called again and again, and RuntimeError.

    Its own client would try for the whole timeout, deaf to everything else.
    """
    deadline = time.monotonic() + timeout.total_seconds()
    while True:
        check()
        try:
            socket.create_connection((address, port), _TRY_S).close()
            break
        except OSError as error:
            if time.monotonic() > deadline:
                raise RuntimeError(f"no answer from port {port} of {address}: {error.strerror or error}") from error
            time.sleep(0.02)
    store = TCPStore(address, port, None, is_master=False, timeout=datetime.timedelta(seconds=CONNECT_S))
    store.set_timeout(timeout)
    return store


def _await_rank_0(world: World, timeout_s: float) -> None:
    """Until its store can be reached: the store's own client tells each vain try in a page of C++ frames."""
    deadline, pause_s = time.monotonic() + timeout_s, 0.05
    while True:
        try:
            socket.create_connection((world.master_addr, world.master_port), CONNECT_S).close()
            return
        except OSError as error:
            if time.monotonic() + pause_s > deadline:
                where = f"{world.master_addr}, port {world.master_port}"
                raise RuntimeError(f"no answer from {where}, for {timeout_s:g} s: {error.strerror or error}") from error
        threading.Event().wait(pause_s)  # time.sleep fails under a clock that libfaketime shifts
        pause_s = min(2 * pause_s, 1.0)


def _own_addresses() -> list[str]:
    """IPv4 and IPv6 addresses of this host that others may reach."""
    return [entry.address for entries in psutil.net_if_addrs().values() for entry in entries
            if entry.family in (socket.AF_INET, socket.AF_INET6)
            and not entry.address.startswith(("127.", "::1", "fe80:"))]


def _reachable(addresses: list[str], port: int) -> str:
    for address in addresses:
        with contextlib.suppress(OSError), socket.create_connection((address, port), CONNECT_S):
            return address
    raise RuntimeError(f"rank 0 can not be reached at port {port} of any of {', '.join(addresses) or 'no address'}")
