"""A c10d process group over Horovod's collectives, so that DDP, lanes and checkpoints need not know of it.

Horovod matches operations by name, not by order: names hold the group's name and a count, which are equal on all
ranks because c10d asks all ranks for the same collectives in the same order.

What Horovod does not sum itself is widened without loss: int8, uint8, int16 and bool travel as int32 and come back
with the same bits; bfloat16 travels as float32, is summed there, and is rounded once.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence
from typing import Any

import horovod.torch as hvd
import torch
from torch import Tensor
from torch._C._distributed_c10d import (
    AllgatherOptions,
    AllreduceOptions,
    AllToAllOptions,
    BarrierOptions,
    BroadcastOptions,
    GatherOptions,
    ProcessGroup,
    ReduceOp,
    ReduceOptions,
    ReduceScatterOptions,
    ScatterOptions,
)

from distrib.comm.horovod_work import HorovodWork

_SUMMED = {torch.int32, torch.int64, torch.float16, torch.float32, torch.float64}
_WIDER = {torch.bfloat16: torch.float32, torch.int8: torch.int32, torch.uint8: torch.int32,
          torch.int16: torch.int32, torch.bool: torch.int32}
_OPERATIONS = {ReduceOp.SUM: hvd.Sum, ReduceOp.AVG: hvd.Sum, ReduceOp.MIN: hvd.Min, ReduceOp.MAX: hvd.Max,
               ReduceOp.PRODUCT: hvd.Product}
LARGEST = 2**31 - 1
"""Horovod counts elements in 32 bits."""


_ProcessGroup: Any = ProcessGroup  # its stub overloads every collective for the many ways of calling


class HorovodGroup(_ProcessGroup):  # type: ignore[misc]
    """The ranks ``ranks`` of the world, in that order. Point-to-point messages are not offered: Horovod has none."""

    def __init__(self, ranks: Sequence[int], rank: int, name: str, timeout: datetime.timedelta,
                 close: Callable[[], None] | None = None) -> None:
        super().__init__(rank, len(ranks))
        self._ranks, self._name = list(ranks), name
        self._timeout_s = timeout.total_seconds()
        self._set = _process_set(self._ranks)
        self._count = 0
        self._close = close

    def getBackendName(self) -> str:  # noqa: N802  # c10d's own name
        return "horovod"

    def getGroupName(self) -> str:  # noqa: N802
        return self._name

    def setGroupName(self, name: str) -> None:  # noqa: N802
        self._name = name

    @property
    def _device_types(self) -> list[torch.device]:
        return [torch.device("cpu")]

    def new_group(self, ranks: list[int], timeout: datetime.timedelta, group_name: str,
                  **_: object) -> HorovodGroup | None:
        """The subgroup of ``ranks``, or None on ranks outside it. Collective over the world."""
        if ranks != sorted(ranks):
            raise RuntimeError(f"the ranks {ranks} are not ascending: Horovod can not number them so")
        own = hvd.rank()
        if own in ranks:
            return HorovodGroup(ranks, ranks.index(own), group_name, timeout)
        _process_set(ranks)
        return None

    def shutdown(self) -> None:
        if self._close is not None:
            self._close()

    abort = shutdown

    def set_timeout(self, timeout: datetime.timedelta) -> None:
        self._timeout_s = timeout.total_seconds()

    def allreduce(self, tensors: Any, opts: Any = None) -> HorovodWork:
        tensors = [tensors] if isinstance(tensors, Tensor) else list(tensors)
        return self._reduced("all_reduce", tensors, (opts or AllreduceOptions()).reduceOp, tensors)

    allreduce_coalesced = allreduce

    def reduce(self, tensors: list[Tensor], opts: ReduceOptions | None = None) -> HorovodWork:
        opts = opts or ReduceOptions()
        return self._reduced("reduce", tensors, opts.reduceOp,
                             tensors if opts.rootRank == self.rank() else [None] * len(tensors))

    def broadcast(self, tensors: Any, opts: Any = None) -> HorovodWork:
        tensors = [tensors] if isinstance(tensors, Tensor) else list(tensors)
        root = self._ranks[(opts or BroadcastOptions()).rootRank]
        return self._start(
            "broadcast", [_words(tensor) for tensor in tensors],
            lambda words, name: hvd.broadcast_async_(words, root, name=name, process_set=self._set),
            lambda received: [_fill(tensor, words) for tensor, words in zip(tensors, received, strict=True)],
        )

    def barrier(self, opts: BarrierOptions | None = None) -> HorovodWork:
        del opts
        return self.allreduce([torch.zeros(1, dtype=torch.int32)])

    def allgather(self, outputs: list[list[Tensor]], inputs: list[Tensor],
                  opts: AllgatherOptions | None = None) -> HorovodWork:
        del opts
        return self._gathered("all_gather", inputs, outputs)

    def _allgather_base(self, output: Tensor, input: Tensor, opts: Any = None) -> HorovodWork:
        del opts
        return self._gathered("all_gather", [input], [self._rows(output, input)])

    def allgather_into_tensor_coalesced(self, outputs: list[Tensor], inputs: list[Tensor],
                                        opts: Any = None) -> HorovodWork:
        del opts
        return self._gathered("all_gather", inputs, [self._rows(o, i) for o, i in zip(outputs, inputs, strict=True)])

    all_gather_single = _allgather_base

    def gather(self, outputs: list[list[Tensor]], inputs: list[Tensor],
               opts: GatherOptions | None = None) -> HorovodWork:
        root = (opts or GatherOptions()).rootRank
        return self._gathered("gather", inputs, outputs if self.rank() == root else [[]])

    def scatter(self, outputs: list[Tensor], inputs: list[list[Tensor]],
                opts: ScatterOptions | None = None) -> HorovodWork:
        if self.rank() == (opts or ScatterOptions()).rootRank:
            return self.alltoall(outputs, inputs[0], source=True)
        return self.alltoall(outputs, [outputs[0].new_empty(0)] * self.size(), source=False)

    def reduce_scatter(self, outputs: list[Tensor], inputs: list[list[Tensor]],
                       opts: ReduceScatterOptions | None = None) -> HorovodWork:
        own = self.rank()
        together = [torch.cat([part.reshape(-1) for part in parts]) for parts in inputs]
        takes = [(out, sum(part.numel() for part in parts[:own])) for out, parts in zip(outputs, inputs, strict=True)]
        return self._reduced("reduce_scatter", together, (opts or ReduceScatterOptions()).reduceOp, takes)

    def _reduce_scatter_base(self, output: Tensor, input: Tensor, opts: Any = None) -> HorovodWork:
        return self.reduce_scatter([output], [self._rows(input, output)], opts)

    def reduce_scatter_tensor_coalesced(self, outputs: list[Tensor], inputs: list[Tensor],
                                        opts: Any = None) -> HorovodWork:
        return self.reduce_scatter(outputs, [self._rows(i, o) for i, o in zip(inputs, outputs, strict=True)], opts)

    reduce_scatter_single = _reduce_scatter_base

    def alltoall(self, outputs: list[Tensor], inputs: list[Tensor], opts: AllToAllOptions | None = None,
                 source: bool | None = None) -> HorovodWork:
        """``source``: only this rank's (True) or another's (False) tensors travel; None: everybody's."""
        del opts
        splits = torch.tensor([_bytes(tensor).numel() for tensor in inputs], dtype=torch.int32)
        sent = torch.cat([_bytes(tensor) for tensor in inputs])
        expected = sum(_bytes(tensor).numel() for tensor in outputs)

        def finish(received: list[Any]) -> list[Tensor]:
            octets = received[0][0]
            if octets.numel() != expected:
                raise RuntimeError(f"{octets.numel()} bytes came where {expected} were expected")
            start = 0
            for tensor in outputs:
                size = tensor.numel() * tensor.element_size()
                _fill(tensor, octets[start:start + size])
                start += size
            return outputs

        return self._start("all_to_all" if source is None else "scatter", [sent],
                           lambda octets, name: hvd.alltoall_async(octets, splits, name=name, process_set=self._set),
                           finish, even_if_empty=True)

    def alltoall_base(self, output: Tensor, input: Tensor, output_splits: list[int],
                      input_splits: list[int], opts: Any = None) -> HorovodWork:
        del opts
        if not output.is_contiguous():
            raise RuntimeError("all_to_all_single wants a contiguous output")
        equal = [output.shape[0] // self.size()] * self.size(), [input.shape[0] // self.size()] * self.size()
        return self.alltoall(list(output.split(output_splits or equal[0])), list(input.split(input_splits or equal[1])))

    def send(self, *_: object) -> HorovodWork:
        raise RuntimeError("Horovod has no point-to-point messages; use a collective, or comm.backend = gloo")

    recv = recv_anysource = send

    def _reduced(self, doing: str, tensors: list[Tensor], operation: Any, takers: Sequence[Any]) -> HorovodWork:
        """Reduce ``tensors``. A taker is None, the tensor that takes all, or one that takes from an offset on."""
        kind = next((known for known in _OPERATIONS if operation == known), None)
        if kind is None:
            raise RuntimeError(f"{doing} with {operation} is not offered by Horovod")
        average = kind == ReduceOp.AVG
        if average and not all(tensor.dtype.is_floating_point for tensor in tensors):
            raise RuntimeError(f"{doing}: the average of integers is not offered")
        takers = [taker if taker is None or isinstance(taker, tuple) else (taker, 0) for taker in takers]
        sent = [_summable(tensor, kind, in_place=taker is not None and taker[0] is tensor)
                for tensor, taker in zip(tensors, takers, strict=True)]

        def finish(sums: list[Tensor]) -> list[Tensor]:
            for total, taker in zip(sums, takers, strict=True):
                if taker is None:
                    continue
                out, start = taker
                part = total[start:start + out.numel()]
                part = part / self.size() if average else part
                if part.data_ptr() != out.data_ptr():
                    out.copy_(part.view(out.shape))
            return [tensor for tensor, _ in filter(None, takers)]

        return self._start(doing, sent, lambda values, name: hvd.allreduce_async_(
            values, op=_OPERATIONS[kind], name=name, process_set=self._set), finish)

    def _gathered(self, doing: str, inputs: list[Tensor], outputs: list[list[Tensor]]) -> HorovodWork:
        words = [_words(tensor) for tensor in inputs]

        def finish(received: list[Tensor]) -> list[Any]:
            for together, own, parts in zip(received, words, outputs, strict=True):
                if together.numel() != own.numel() * self.size():
                    raise RuntimeError("the ranks gave tensors of different sizes")
                for number, tensor in enumerate(parts):
                    _fill(tensor, together[number * own.numel():(number + 1) * own.numel()])
            return outputs

        return self._start(doing, words, lambda own, name: hvd.allgather_async(
            own, name=name, process_set=self._set), finish)

    def _rows(self, large: Tensor, small: Tensor) -> list[Tensor]:
        """The equal parts of a large tensor, one of each rank's."""
        if large.numel() != small.numel() * self.size() or not large.is_contiguous():
            raise RuntimeError(f"{large.numel()} elements are not {self.size()} times {small.numel()}, in one piece")
        return list(large.view(self.size(), *small.shape))

    def _start(self, doing: str, sent: list[Tensor], start: Callable[[Tensor, str], int],
               finish: Callable[[list[Any]], list[Any]], even_if_empty: bool = False) -> HorovodWork:
        """Start one Horovod operation for each tensor. Empty ones, empty on every rank, do not travel."""
        if any(tensor.numel() > LARGEST for tensor in sent):
            raise RuntimeError(f"{doing}: Horovod takes at most {LARGEST} elements at once")
        handles = {}
        for number, tensor in enumerate(sent):
            self._count += 1
            if tensor.numel() or even_if_empty:
                handles[number] = start(tensor, f"{self._name}.{self._count}.{doing}")

        def collect(outputs: list[Any]) -> list[Any]:
            by_number = dict(zip(handles, outputs, strict=True))
            return finish([by_number.get(number, tensor) for number, tensor in enumerate(sent)])

        return HorovodWork(doing, list(handles.values()), collect, self._timeout_s)


_sets: dict[tuple[int, ...], Any] = {}


def forget_process_sets() -> None:
    """To be called when Horovod has been shut down, which ends them."""
    _sets.clear()


def _process_set(ranks: list[int]) -> Any:
    """Horovod's name for these ranks; collective over the world at the first call. They last until shutdown."""
    if ranks == list(range(hvd.size())):
        return hvd.global_process_set
    if tuple(ranks) not in _sets:
        _sets[tuple(ranks)] = hvd.add_process_set(ranks)
    return _sets[tuple(ranks)]


def _dense(tensor: Tensor) -> Tensor:
    if tensor.is_sparse or tensor.is_complex():
        raise RuntimeError(f"Horovod does not take {tensor.layout} tensors of {tensor.dtype}")
    return tensor.detach().contiguous().view(-1)


def _summable(tensor: Tensor, operation: Any, in_place: bool) -> Tensor:
    """The values, 1-d, of a type that Horovod sums: the tensor's own memory where ``in_place`` and possible."""
    values = _dense(tensor)
    wider = _WIDER.get(tensor.dtype)
    if tensor.dtype == torch.float16 and operation not in (ReduceOp.SUM, ReduceOp.AVG):
        wider = torch.float32  # MPI sums this type by Horovod's own function, and has none for the rest
    if wider is None and tensor.dtype not in _SUMMED:
        raise RuntimeError(f"Horovod can not reduce {tensor.dtype}")
    if wider is not None:
        return values.to(wider)
    return values if in_place or values.data_ptr() != tensor.data_ptr() else values.clone()


def _bytes(tensor: Tensor) -> Tensor:
    return _dense(tensor).view(torch.uint8)


def _words(tensor: Tensor) -> Tensor:
    """The tensor's bits, 1-d, as int64 where they fill it (by size alone: all ranks must choose the same), else bytes.

    They share the tensor's memory where it is contiguous and aligned.
    """
    octets = _bytes(tensor)
    return octets if octets.numel() % 8 else _aligned(octets).view(torch.int64)


def _fill(tensor: Tensor, words: Tensor) -> Tensor:
    """Put bits into a tensor, which may lie anywhere in memory."""
    if tensor.numel() and words.data_ptr() != tensor.data_ptr():
        tensor.detach().copy_(_aligned(words).view(tensor.dtype).view(tensor.shape))
    return tensor


def _aligned(words: Tensor) -> Tensor:
    """A slice of bytes may begin where no wider number may."""
    octets = words.view(torch.uint8)
    return octets.clone() if octets.data_ptr() % 8 or octets.storage_offset() % 8 else octets
