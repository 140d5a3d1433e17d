"""Starting and ending Horovod in this process."""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable

import horovod.torch as hvd
from horovod.runner.http.http_server import RendezvousServer
from torch._C._distributed_c10d import Store

from distrib.comm.gloo import is_loopback
from distrib.comm.horovod_group import forget_process_sets
from distrib.world import World

# A site may set any of these otherwise.
SETTINGS = {
    "HOROVOD_DYNAMIC_PROCESS_SETS": "1",  # subgroups
    "HOROVOD_CYCLE_TIME": "2",  # ms between looks for work, each of which costs every rank 0.2 ms of processor time
    "HOROVOD_CACHE_CAPACITY": "0",  # it is for names that come again, and ours do not
    "HOROVOD_STALL_CHECK_DISABLE": "1",  # the group's own timeout watches
    "HOROVOD_LOG_LEVEL": "fatal",  # errors are raised, and told once
}


def start_under_launcher() -> None:
    """Start Horovod with what `horovodrun` or `mpirun` set, unless it runs. Collective. Raises RuntimeError."""
    if not hvd.is_initialized():
        _initialise()


def start_alone(world: World, store: Store, timeout: datetime.timedelta) -> Callable[[], None]:
    """Start Horovod over its gloo, whose ranks find each other through rank 0; returns what ends it. Collective.

    Raises RuntimeError, also if a rank does not come within the timeout.
    """
    if hvd.is_initialized():  # the one before was not ended, as after an error
        _shutdown()
    server = None
    place = {"HOROVOD_RANK": world.rank, "HOROVOD_SIZE": world.size,
             "HOROVOD_LOCAL_RANK": 0, "HOROVOD_LOCAL_SIZE": 1,  # nothing of ours asks who shares a host
             "HOROVOD_CROSS_RANK": world.rank, "HOROVOD_CROSS_SIZE": world.size,
             "HOROVOD_HOSTNAME": f"rank{world.rank}"}
    os.environ.update({name: str(value) for name, value in place.items()})
    os.environ.update({"HOROVOD_CONTROLLER": "gloo", "HOROVOD_CPU_OPERATIONS": "gloo"})
    os.environ["HOROVOD_GLOO_TIMEOUT_SECONDS"] = str(max(1, round(timeout.total_seconds())))
    os.environ.pop("HOROVOD_GLOO_RENDEZVOUS_ADDR", None)
    if world.size > 1:
        if world.is_first:
            server = RendezvousServer()
            store.set("rendezvous", str(server.start()))
            server.init([])
        os.environ["HOROVOD_GLOO_RENDEZVOUS_ADDR"] = world.master_addr
        os.environ["HOROVOD_GLOO_RENDEZVOUS_PORT"] = store.get("rendezvous").decode()
        interfaces = "lo" if is_loopback(world.master_addr) else os.environ.get("GLOO_SOCKET_IFNAME", "")
        if interfaces:
            os.environ.setdefault("HOROVOD_GLOO_IFACE", interfaces.split(",")[0])
        _await_all(world, store, timeout)
    try:
        _initialise()
    except RuntimeError:
        _stop_server(server)
        raise
    finally:
        for name in place:  # or a program started from here would take itself for a rank
            del os.environ[name]

    def stop() -> None:
        nonlocal server
        _shutdown()
        _stop_server(server)
        server = None

    return stop


def _await_all(world: World, store: Store, timeout: datetime.timedelta) -> None:
    """Horovod's own start waits without saying for whom."""
    if store.add("arrived", 1) == world.size:
        store.set("complete", "")
    store.wait(["complete"], timeout)


def _initialise() -> None:
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    try:
        hvd.init()
    except (ValueError, ImportError) as error:
        raise RuntimeError(f"Horovod did not start: {error}") from error


def _shutdown() -> None:
    hvd.shutdown()
    forget_process_sets()


def _stop_server(server: RendezvousServer | None) -> None:
    if server is not None:
        server.stop()
        server._httpd.server_close()
