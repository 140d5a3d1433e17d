"""oneccl: Intel's oneCCL, through an extension of our own (oneccl.cpp) that is compiled for the installed torch.

Ranks on one host talk through shared memory, ranks on different hosts through libfabric: over TCP, or over the
provider that the site names in FI_PROVIDER.
"""

from __future__ import annotations

import atexit
import contextlib
import datetime
import importlib.machinery
import importlib.util
import itertools
import json
import os
import socket
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil

from distrib.comm.gloo import is_loopback
from distrib.comm.oneccl_build import NAME, WHEELS, find_extension
from distrib.errors import WorldError
from distrib.world import World

REMEDY = "build it with `distrib backends --build oneccl`"

# A site may set any of these otherwise.
SETTINGS = {
    "CCL_ATL_TRANSPORT": "ofi",  # the default, mpi, ends the process where no MPI started it
    "CCL_PROCESS_LAUNCHER": "none",
    "CCL_WORKER_OFFLOAD": "0",  # our own thread drives oneCCL: an error in oneCCL's worker would end the process
    "FI_PROVIDER": "tcp",
}

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - where the kernel keeps it
LEFT_S = 600.0
"""Age from which shared memory of a process that is gone is removed: all its peers have opened it long before."""

_world = World()
_settled: set[str] = set()
"""Names of the copies of the extension that have read their environment."""
_copies = itertools.count()
_own_settings: dict[str, str] = {}
"""What is set here, and not by the site."""


def missing() -> str | None:
    """What is missing, and the remedy; None if nothing is. Local, and quick."""
    if find_extension() is None:
        return f"the oneCCL backend is not built for this torch; {REMEDY}"
    try:
        _extension()
    except ImportError as error:
        return f"the oneCCL backend does not load ({str(error).splitlines()[0]}); {REMEDY}"
    return None


def version() -> str:
    """Of oneCCL."""
    return f"oneCCL {WHEELS['oneccl-devel'][0]}"


def build(tell: Callable[[str], None]) -> None:
    """Compile it into the user's cache. Raises MissingPartError or StorageError."""
    from distrib.comm.oneccl_build import build as build_extension

    build_extension(tell)


def prepare(world: World) -> str:
    """Register oneCCL with c10d; local."""
    global _world
    import torch.distributed as dist

    _world = world
    _extension()
    if "oneccl" not in dist.Backend.backend_list:
        dist.Backend.register_backend("oneccl", create, devices=["cpu"])
    return "oneccl"


def create(store: Any, rank: int, size: int, timeout: datetime.timedelta) -> Any:
    """c10d's call for every group; the first is that of all ranks."""
    return _create(_extension(), store, rank, size, timeout)


def create_apart(store: Any, rank: int, size: int, timeout: datetime.timedelta) -> Any:
    """A group of all ranks in a copy of oneCCL of its own.

    oneCCL can not put away a communicator that has lost a peer, and what is left of it (operations, connections,
    errors that nobody has read) makes the next one hang or fail now and then. Nothing of it reaches another copy.
    """
    return _create(_copy_of_extension(), store, rank, size, timeout)


def _create(extension: ModuleType, store: Any, rank: int, size: int, timeout: datetime.timedelta) -> Any:
    address = own_address(_world.master_addr)
    keeper = ("the launcher" if _world.store_is_hosted else "rank 0") + f" on {_keeper_host(_world, address)}"
    # From here on a lost peer is noticed.
    peers = extension.Peers(store, rank, size, timeout, address, f"rank {_world.rank} on {_world.host}", keeper)
    if extension.__name__ not in _settled:  # oneCCL reads its environment once
        remove_left_memory(time.time())
        _settle(_world, peers, rank, size, address)
        atexit.register(remove_own_memory)
        extension.pin(_world.comm_cpus)
        _settled.add(extension.__name__)
    return extension.create(peers)


def remove_left_memory(now: float) -> None:
    """Give back the shared memory (64 MB a rank, named PID:UID:NUMBER) that killed ranks of this user left here."""
    for path in SHARED_MEMORY.glob(f"*:{os.getuid()}:*"):
        pid = path.name.partition(":")[0]
        with contextlib.suppress(OSError):
            if pid.isdigit() and not psutil.pid_exists(int(pid)) and now - path.stat().st_mtime > LEFT_S:
                path.unlink()


def remove_own_memory() -> None:
    """Give back this process's shared memory as it ends: communicators are never destroyed, so libfabric does not."""
    for path in SHARED_MEMORY.glob(f"{os.getpid()}:{os.getuid()}:*"):
        path.unlink(missing_ok=True)


def _keeper_host(world: World, address: str) -> str:
    """What the host of the store is called here."""
    is_here = is_loopback(world.master_addr) or world.master_addr in (address, world.host)
    return world.host if is_here else world.master_addr


def own_address(other: str) -> str:
    """This host's address on the way to another host, which need not answer. Raises OSError if there is no way."""
    family, kind, protocol, _, where = socket.getaddrinfo(other, 9, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.connect(where)  # a datagram socket sends nothing for that
        return str(probe.getsockname()[0])


def interface_of(address: str) -> str | None:
    """Name of the network interface that has an address."""
    for name, entries in psutil.net_if_addrs().items():
        if any(entry.address.partition("%")[0] == address for entry in entries):
            return name
    return None


def share_names(places: Sequence[tuple[str, str]]) -> bool:
    """Whether two machines go by one host name: oneCCL would take their ranks for neighbours in shared memory.

    ``places``: (host name, what tells machines apart) of every rank.
    """
    machines: dict[str, str] = {}
    return any(machines.setdefault(host, machine) != machine for host, machine in places)


def counted_apart(places: Sequence[tuple[str, str, str]]) -> tuple[int, int] | None:
    """Two ranks of one host whose processes are numbered apart, as in two containers; None if there are none.

    oneCCL tells neighbours apart by these numbers, and hangs where two are equal. ``places``: (host name, boot, pid
    namespace) of every rank, by rank.
    """
    firsts: dict[tuple[str, str], int] = {}
    for rank, (host, boot, pids) in enumerate(places):
        first = firsts.setdefault((host, boot), rank)
        if places[first][2] != pids:
            return first, rank
    return None


def _settle(world: World, peers: Any, rank: int, size: int, address: str) -> None:
    """Collective: set up oneCCL's environment for where the ranks are. Raises WorldError where it would hang."""
    peers.set(f"place/{rank}", json.dumps([world.host, _boot_id(), _pid_namespace(),
                                           address if size > world.local_size else ""]))
    if rank == 0:
        places = [json.loads(peers.get(f"place/{other}")) for other in range(size)]
        shared = share_names([(host, f"{boot} {where}") for host, boot, _, where in places])
        peers.set("places", json.dumps([not shared, counted_apart([place[:3] for place in places])]))
    shared_memory, apart = json.loads(peers.get("places"))
    if apart:
        peers.set(f"told/{rank}", "yes")
        if rank == 0:  # with which the store may go
            for other in range(size):
                peers.get(f"told/{other}")
        raise WorldError(f"ranks {apart[0]} and {apart[1]} are on one host, but in containers that number their "
                         "processes apart", "the sums would hang", "start the containers with --pid host (Apptainer: "
                         "without --pid and --containall), or write comm.backend: gloo")
    interface = interface_of(address)
    wanted = {
        **SETTINGS,
        "CCL_ATL_SHM": str(int(shared_memory)),
        "CCL_LOCAL_RANK": str(world.local_rank),
        "CCL_LOCAL_SIZE": str(world.local_size),
        "CCL_OFI_LIBRARY_PATH": str(_folder() / "libfabric.so.1"),
        "FI_PROVIDER_PATH": str(_folder()),
        **({"CCL_KVS_IFACE": interface, "FI_TCP_IFACE": interface} if interface else {}),
    }
    for name, value in wanted.items():
        if os.environ.get(name) == _own_settings.get(name):
            os.environ[name] = _own_settings[name] = value


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _pid_namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _folder() -> Path:
    found = find_extension()
    assert found is not None
    return found.parent


def _extension() -> ModuleType:
    """The compiled extension, loaded once. Raises ImportError."""
    if NAME not in sys.modules:
        sys.modules[NAME] = _load(NAME, _folder() / f"{NAME}.so")
    return sys.modules[NAME]


def _copy_of_extension() -> ModuleType:
    """Another copy of the compiled extension, with static data of its own; 2 MB that stay. Raises ImportError."""
    name = f"copy{next(_copies)}.{NAME}"
    copy = os.memfd_create(name, 0)  # stays open: a library that is loaded is known by its path
    os.write(copy, (_folder() / f"{NAME}.so").read_bytes())
    return _load(name, Path(f"/proc/self/fd/{copy}"))


def _load(name: str, path: Path) -> ModuleType:
    import torch  # noqa: F401  # its libraries must be loaded first

    loader = importlib.machinery.ExtensionFileLoader(name, str(path))
    spec = importlib.util.spec_from_loader(name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    atexit.register(module.stop)
    return module
