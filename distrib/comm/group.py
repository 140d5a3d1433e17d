"""The ranks as one group: the few collectives that training and scoring need."""

from __future__ import annotations

import ctypes
import datetime
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor
from torch._C._distributed_c10d import HashStore

from distrib.comm.choice import Choice, choose_alone, choose_together
from distrib.comm.meeting import open_store
from distrib.comm.table import announcer, creator, prepare_backend
from distrib.errors import WorldError
from distrib.stdout import quiet_stdout
from distrib.world import World

_T = TypeVar("_T")
_OPERATIONS = {"sum": dist.ReduceOp.SUM, "max": dist.ReduceOp.MAX}
_SLICE = datetime.timedelta(seconds=0.05)
_CREATE_S = 0.01
_abandoned: list[tuple[Any, list[dist.Work]]] = []
"""Groups that were left in the middle of something: to destroy one before that has ended would wait for it."""


@dataclass(frozen=True)
class Meeting:
    """Where the ranks of an elastic run meet, and what can end that."""

    store: Any
    """Theirs alone."""
    check: Callable[[], None]
    """Raises if the group is over; called again and again while something is waited for."""


class Group:
    """All ranks of a world. A context manager: leaving it destroys the process group.

    Every method but `rank`, `size` is collective: all ranks must call it, in the same order. A lost peer
    is a WorldError. With a ``meeting`` (see `can_be_elastic`) nothing waits for a peer when the meeting is over: what
    its check raises comes out, and another group can be made. DDP's own collectives then stay within the rank.
    """

    def __init__(self, world: World, backend: str = "auto", timeout_s: float = 300.0,
                 meeting: Meeting | None = None) -> None:
        self.world, self._meeting = world, meeting
        self._group: Any = None
        self._under_way: list[dist.Work] = []
        timeout = datetime.timedelta(seconds=timeout_s)
        # Some backends write on stdout what they find.
        with self._lost_peer("meeting the other ranks"), no_meeting(world), quiet_stdout():
            store = meeting.store if meeting else None
            self.choice = Choice(backend, "as asked for")
            if backend == "auto":
                alone = choose_alone(world)
                store = store or (open_store(world, timeout) if alone is None else None)
                self.choice = alone or (choose_together(world, store) if meeting is None
                                        else self._in_thread(lambda: choose_together(world, store)))
            name = prepare_backend(self.backend, world)
            if meeting is not None:
                if not dist.is_initialized():
                    dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
                create = creator(self.backend)
                assert create is not None
                self._group = self._in_thread(lambda: create(store, world.rank, world.size, timeout))
                return
            if name == "mpi":  # it brings ranks and meeting place of its own
                dist.init_process_group(name, timeout=timeout)
            else:
                store = store or open_store(world, timeout, announcer(self.backend))
                dist.init_process_group(name, store=store, rank=world.rank, world_size=world.size, timeout=timeout)
            self._group = dist.group.WORLD

    @property
    def backend(self) -> str:
        """A name of the table of backends."""
        return self.choice.backend

    @property
    def rank(self) -> int:
        return self.world.rank

    @property
    def size(self) -> int:
        return self.world.size

    def start_all_reduce(self, tensor: Tensor, operation: Literal["sum", "max"] = "sum") -> Pending:
        """Begin to replace ``tensor`` by its sum or maximum over the ranks."""
        options = dist.AllreduceOptions()
        options.reduceOp = _OPERATIONS[operation]  # type: ignore[assignment]
        with self._lost_peer("an all-reduce"):
            if self._group is None:
                raise RuntimeError("the group was left before")
            work = self._group.allreduce([tensor], options)
        self._note(work)
        return Pending(self, work)

    def all_reduce(self, tensor: Tensor, operation: Literal["sum", "max"] = "sum") -> None:
        """Replace ``tensor`` by its sum or maximum over the ranks."""
        self.start_all_reduce(tensor, operation).wait()

    def broadcast(self, tensors: Iterable[Tensor], source: int = 0) -> None:
        """Replace each tensor by rank ``source``'s."""
        if self.size == 1:
            return
        with self._lost_peer("a broadcast"):
            for tensor in tensors:
                options = dist.BroadcastOptions()
                options.rootRank, options.rootTensor = source, 0
                work = self._group.broadcast([tensor], options)
                self._note(work)
                self._wait(work)

    def broadcast_bytes(self, content: bytes | None, source: int = 0) -> bytes:
        """Rank ``source``'s bytes, on every rank; the others pass None."""
        if self.size == 1:
            assert content is not None
            return content
        length = torch.tensor([len(content) if content is not None else 0])
        self.broadcast([length], source)
        buffer = torch.zeros(int(length), dtype=torch.uint8)
        if content:
            buffer.copy_(torch.frombuffer(bytearray(content), dtype=torch.uint8))
        self.broadcast([buffer], source)
        return buffer.numpy().tobytes()

    def sum_over_ranks(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Element-wise sum of equally shaped arrays."""
        tensor = torch.from_numpy(values.copy())
        self.all_reduce(tensor)
        return tensor.numpy()

    def rows_of_all(self, row: NDArray[np.float64]) -> NDArray[np.float64]:
        """[size, N]: the row [N] of every rank, exactly, on all ranks. NaN may be in it, infinities too."""
        rows = torch.zeros(self.size, row.size, dtype=torch.float64)
        rows[self.rank] = torch.from_numpy(row)
        self.all_reduce(rows)  # every backend has it; the others' rows are zero here
        return rows.numpy()

    def __enter__(self) -> Group:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        if self._meeting is None:
            dist.destroy_process_group()
        elif self._under_way:
            _abandon(self._group, self._under_way)
        self._group = None

    def _in_thread(self, create: Callable[[], _T]) -> _T:
        """What ``create`` returns or raises; left to itself if the meeting is over before."""
        results: list[_T] = []
        errors: list[BaseException] = []

        def run() -> None:
            try:
                results.append(create())
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=run, name="make group", daemon=True)
        thread.start()
        while thread.is_alive():
            thread.join(_CREATE_S)
            self._check()
        if errors:
            raise errors[0]
        return results[0]

    def _check(self) -> None:
        if self._meeting is not None:
            self._meeting.check()

    def _note(self, work: dist.Work) -> None:
        if self._meeting is not None:
            self._under_way.append(work)

    def _wait(self, work: dist.Work) -> None:
        """Raises RuntimeError, and what the meeting's check raises."""
        if self._meeting is None:
            work.wait()
            return
        while True:
            try:
                work.wait(_SLICE)
                self._under_way.remove(work)
                return
            except RuntimeError:  # an error of the work, or the slice is over
                self._check()
                if work.is_completed():
                    raise

    @contextmanager
    def _lost_peer(self, doing: str) -> Iterator[None]:
        try:
            yield
        except (RuntimeError, ValueError) as error:
            self._check()
            reason = str(error).splitlines()[0].split(". This may")[0][:200]
            raise WorldError(f"rank {self.rank} of {self.size} on {self.world.host} failed in {doing}: {reason}",
                             "another rank was lost, or never came",
                             "see that rank's own message; start again to go on from the newest checkpoint"
                             ) from error


def _abandon(group: object, works: list[dist.Work]) -> None:
    """Keep a group from being destroyed while something of it is under way, also when the interpreter ends."""
    for old in [old for old in _abandoned if all(work.is_completed() for work in old[1])]:
        _abandoned.remove(old)
        ctypes.pythonapi.Py_DecRef(ctypes.py_object(old[0]))
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(group))
    _abandoned.append((group, works))


def can_be_elastic(backend: str) -> bool:
    """Whether groups of a backend can be made again in the same process, after the loss of a peer."""
    return backend == "auto" or creator(backend) is not None


@contextmanager
def no_meeting(world: World) -> Iterator[None]:
    """What prevents ranks from meeting though no peer is at fault, in plain words. Raises WorldError."""
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        if "EADDRINUSE" in text or "address already in use" in text:
            raise WorldError(f"port {world.master_port} of {world.master_addr} is taken by another program",
                             "the ranks can not meet", "set MASTER_PORT to a free port, on every rank") from error
        if (interface := re.search(r"Unable to find (?:address|interface) for: (\S+)", text)) is not None:
            raise WorldError(f"the network interface {interface[1]} of {world.host} is not there or has no address",
                             "the ranks can not meet", "correct GLOO_SOCKET_IFNAME, or unset it") from error
        raise


class Pending:
    """A collective under way."""

    def __init__(self, group: Group, work: dist.Work) -> None:
        self._group, self._work = group, work

    def wait(self) -> None:
        """Wait until it is done. Raises WorldError."""
        with self._group._lost_peer("an all-reduce"):
            self._group._wait(self._work)
