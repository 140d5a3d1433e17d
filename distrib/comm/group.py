"""The ranks as one group: the few collectives that training and scoring need."""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Literal

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from distrib.comm.choice import Choice, choose_alone, choose_together
from distrib.comm.meeting import open_store
from distrib.comm.table import announcer, prepare_backend
from distrib.errors import WorldError
from distrib.stdout import quiet_stdout
from distrib.world import World

_OPERATIONS = {"sum": dist.ReduceOp.SUM, "max": dist.ReduceOp.MAX}


class Group:
    """All ranks of a world. A context manager: leaving it destroys the process group.

    Every method but `rank`, `size` is collective: all ranks must call it, in the same order. A lost peer
    is a WorldError.
    """

    def __init__(self, world: World, backend: str = "auto", timeout_s: float = 300.0) -> None:
        self.world = world
        timeout = datetime.timedelta(seconds=timeout_s)
        # Some backends write on stdout what they find.
        with self._lost_peer("meeting the other ranks"), _no_meeting(world), quiet_stdout():
            store = None
            self.choice = Choice(backend, "as asked for")
            if backend == "auto":
                alone = choose_alone(world)
                store = open_store(world, timeout) if alone is None else None
                self.choice = alone or choose_together(world, store)
            name = prepare_backend(self.backend, world)
            if name == "mpi":  # it brings ranks and meeting place of its own
                dist.init_process_group(name, timeout=timeout)
                return
            store = store or open_store(world, timeout, announcer(self.backend))
            dist.init_process_group(name, store=store, rank=world.rank, world_size=world.size, timeout=timeout)

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
        with self._lost_peer("an all-reduce"):
            work = dist.all_reduce(tensor, op=_OPERATIONS[operation], async_op=True)
        return Pending(self, work)

    def all_reduce(self, tensor: Tensor, operation: Literal["sum", "max"] = "sum") -> None:
        """Replace ``tensor`` by its sum or maximum over the ranks."""
        self.start_all_reduce(tensor, operation).wait()

    def broadcast(self, tensors: Iterable[Tensor]) -> None:
        """Replace each tensor by rank 0's."""
        if self.size == 1:
            return
        with self._lost_peer("a broadcast"):
            for tensor in tensors:
                dist.broadcast(tensor, src=0)

    def broadcast_bytes(self, content: bytes | None) -> bytes:
        """Rank 0's bytes, on every rank; the others pass None."""
        if self.size == 1:
            assert content is not None
            return content
        length = torch.tensor([len(content) if content is not None else 0])
        self.broadcast([length])
        buffer = torch.zeros(int(length), dtype=torch.uint8)
        if content:
            buffer.copy_(torch.frombuffer(bytearray(content), dtype=torch.uint8))
        self.broadcast([buffer])
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
        dist.destroy_process_group()

    @contextmanager
    def _lost_peer(self, doing: str) -> Iterator[None]:
        try:
            yield
        except (RuntimeError, ValueError) as error:
            reason = str(error).splitlines()[0].split(". This may")[0][:200]
            raise WorldError(f"rank {self.rank} of {self.size} on {self.world.host} failed in {doing}: {reason}",
                             "another rank was lost, or never came",
                             "see that rank's own message; start again to go on from the newest checkpoint"
                             ) from error


@contextmanager
def _no_meeting(world: World) -> Iterator[None]:
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
            self._work.wait()
