"""Gradients of many lanes on many ranks to one mean, through DistributedDataParallel.

Lanes before a rank's last run under ``no_sync``; ``after_lane`` takes their gradients. The last lane's
gradients come bucket by bucket through DDP's communication hook, so that sending overlaps with backward.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch._C._distributed_c10d import GradBucket
from torch.nn.parallel import DistributedDataParallel

from distrib.comm.group import Group, Pending
from distrib.train.exact import LIMIT, ExactVector, Exponents, power_of_two, scale_bits
from distrib.train.fixed_point import FixedPoint


@dataclass(frozen=True)
class Sums:
    """What the lanes of one attempt at a step add up to."""

    holds: bool
    """False: the exponents were too small, and the step has to be done again."""
    finite: bool
    """Whether every gradient and statistic was a finite number, and not beyond what can be summed."""
    statistics: list[Tensor]
    """Means over all lanes of the statistics, float64, 1-d."""
    stop: bool
    """Whether any rank was asked to stop."""


class Reduction(Protocol):
    """One way to sum; see `ExactReduction` and `FastReduction`."""

    loss_factor: float
    """Factor of each lane's loss."""

    def attach(self, ddp: DistributedDataParallel) -> None:
        """Connect to DDP before its first backward."""
        ...

    def begin(self) -> None:
        """Before the first lane of an attempt."""
        ...

    def after_lane(self, statistics: list[Tensor], last: bool) -> None:
        """After a lane's backward. ``last`` is the rank's last lane, whose gradients went through the hook."""
        ...

    def finish(self, stop: bool) -> Sums:
        """Collective: wait for all sums; gradients are in place if ``holds`` and ``finite``."""
        ...

    def state(self) -> dict[str, Any]:
        """What a resumed run needs, as plain JSON values."""
        ...

    def load_state(self, state: dict[str, Any]) -> None: ...


def memory_order(tensor: Tensor) -> Tensor:
    """A dense tensor's elements as they lie in memory, 1-d, sharing it."""
    return tensor.as_strided((tensor.numel(),), (1,))


@dataclass
class _Bucket:
    """A DDP bucket on its way."""

    buffer: Tensor
    parameters: list[Tensor]
    integers: Tensor
    pending: Pending


class ExactReduction:
    """Fixed-point sums: the same bits for any world size and any assignment of lanes."""

    loss_factor = 1.0

    def __init__(self, group: Group, parameters: list[nn.Parameter], statistic_sizes: list[int], lanes: int) -> None:
        self._group, self._lanes = group, lanes
        self._parameters = parameters
        self._number = {id(parameter): number for number, parameter in enumerate(parameters)}
        self._bits = scale_bits(lanes, 32)
        self._exponents = Exponents.unknown(len(parameters))
        self._statistics = ExactVector(statistic_sizes, lanes)
        self._fixed_point = FixedPoint(torch.get_num_threads())
        self._accumulators: list[Tensor | None] = [None] * len(parameters)
        self._filled = False
        self._peaks = [0.0] * len(parameters)
        self._integers: dict[int, Tensor] = {}
        self._buckets: list[_Bucket] = []

    def attach(self, ddp: DistributedDataParallel) -> None:
        # DDP inspects a hook's annotations, which are strings here.
        ddp.register_comm_hook(None, lambda _, bucket: self._send(bucket))

    def begin(self) -> None:
        self._statistics.clear()
        self._peaks = [0.0] * len(self._parameters)
        self._buckets.clear()
        self._filled = False

    def after_lane(self, statistics: list[Tensor], last: bool) -> None:
        self._statistics.add(statistics)
        if last:
            return
        for number, parameter in enumerate(self._parameters):
            gradient = parameter.grad
            if gradient is None:
                raise _unused(parameter, self._parameters)
            if gradient.stride() != parameter.stride():
                gradient = torch.empty_like(parameter).copy_(gradient)
            accumulator = self._accumulators[number]
            if accumulator is None:
                accumulator = torch.zeros(parameter.numel(), dtype=torch.int32)
                self._accumulators[number] = accumulator
            self._add(number, memory_order(gradient), accumulator, accumulator if self._filled else None)
            parameter.grad = None
        self._filled = True

    def finish(self, stop: bool) -> Sums:
        statistics = self._statistics
        # Everything that is a maximum travels in one small message, beside the sums of the statistics.
        maxima = torch.cat([torch.tensor(self._peaks), statistics.peaks, torch.tensor([float(stop)])])
        maxima = torch.where(maxima <= LIMIT, maxima, math.inf)  # a maximum may lose a NaN, but no infinity
        waiting = [self._group.start_all_reduce(maxima, "max"), self._group.start_all_reduce(statistics.total)]
        for pending in (*waiting, *(bucket.pending for bucket in self._buckets)):
            pending.wait()
        count = len(self._parameters)
        peaks, statistic_peaks = maxima[:count], maxima[count:-1]
        stop, finite = bool(maxima[-1]), bool(maxima.isfinite().all())
        holds = finite and self._exponents.hold(peaks) and statistics.exponents.hold(statistic_peaks)
        means: list[Tensor] = []
        if holds:
            self._write_gradients()
            means = statistics.mean(self._lanes)
        if finite:
            self._exponents.follow(peaks)
            statistics.exponents.follow(statistic_peaks)
        self._buckets.clear()
        return Sums(holds, finite, means, stop)

    def state(self) -> dict[str, Any]:
        return {"gradients": self._exponents.values, "statistics": self._statistics.exponents.values}

    def load_state(self, state: dict[str, Any]) -> None:
        self._exponents.values = list(state["gradients"])
        self._statistics.exponents.values = list(state["statistics"])

    def _add(self, number: int, values: Tensor, total: Tensor, out: Tensor | None) -> None:
        scale = power_of_two(self._exponents.values[number], self._bits)
        self._peaks[number] = max(self._peaks[number], self._fixed_point.add(values, scale, total, out))

    def _send(self, bucket: GradBucket) -> torch.futures.Future[Tensor]:
        """DDP's hook: quantise a bucket of the last lane, join the lanes before it, start to add over ranks."""
        buffer, parameters = bucket.buffer(), bucket.parameters()
        integers = self._integers.get(bucket.index())
        if integers is None or integers.numel() != buffer.numel():
            integers = self._integers[bucket.index()] = torch.empty(buffer.numel(), dtype=torch.int32)
        for parameter, part in _parts(parameters):
            number = self._number[id(parameter)]
            accumulator = self._accumulators[number] if self._filled else None
            if accumulator is None:
                self._add(number, buffer[part], integers[part], None)
            else:
                self._add(number, buffer[part], accumulator, integers[part])
        self._buckets.append(_Bucket(buffer, parameters, integers, self._group.start_all_reduce(integers)))
        # DDP must not wait here: the sums are waited for in finish(), so that the wait can be measured
        # and no gradient is written before it is known that the sums hold.
        done: torch.futures.Future[Tensor] = torch.futures.Future()
        done.set_result(buffer)
        return done

    def _write_gradients(self) -> None:
        for bucket in self._buckets:
            for parameter, part in _parts(bucket.parameters):
                scale = power_of_two(self._exponents.values[self._number[id(parameter)]], self._bits)
                self._fixed_point.read(bucket.integers[part], 1.0 / (scale * self._lanes), bucket.buffer[part])


class FastReduction:
    """Ordinary floating-point sums by DDP itself; the last bits depend on the world size."""

    def __init__(self, group: Group, parameters: list[nn.Parameter], statistic_sizes: list[int], lanes: int) -> None:
        self._group, self._parameters, self._lanes = group, parameters, lanes
        self._sizes = statistic_sizes
        # DDP takes the mean over ranks, which may carry different numbers of lanes.
        self.loss_factor = group.size / lanes
        self._total = torch.zeros(sum(statistic_sizes) + 1, dtype=torch.float64)

    def attach(self, ddp: DistributedDataParallel) -> None:
        """Nothing: DDP's own all-reduce serves."""

    def begin(self) -> None:
        self._total.zero_()

    def after_lane(self, statistics: list[Tensor], last: bool) -> None:  # noqa: ARG002  # DDP sends the last
        self._total[:-1] += torch.cat([tensor.detach().reshape(-1).double() for tensor in statistics])

    def finish(self, stop: bool) -> Sums:
        self._total[-1] = float(stop)
        self._group.all_reduce(self._total)
        finite = all(bool(p.grad.isfinite().all()) for p in self._parameters if p.grad is not None)
        means = list((self._total[:-1] / self._lanes).split(self._sizes))
        return Sums(True, finite and bool(self._total.isfinite().all()), means, bool(self._total[-1] > 0))

    def state(self) -> dict[str, Any]:
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """Nothing is carried from step to step."""


REDUCTIONS: dict[str, type[ExactReduction] | type[FastReduction]] = {"exact": ExactReduction, "fast": FastReduction}


def _parts(parameters: Sequence[Tensor]) -> Iterator[tuple[Tensor, slice]]:
    """Where each parameter lies in its bucket."""
    start = 0
    for parameter in parameters:
        yield parameter, slice(start, start + parameter.numel())
        start += parameter.numel()


def _unused(parameter: nn.Parameter, parameters: list[nn.Parameter]) -> RuntimeError:
    number = next(i for i, p in enumerate(parameters) if p is parameter)
    return RuntimeError(f"trainable parameter {number} of shape {tuple(parameter.shape)} got no gradient: "
                        "the model does not use it")
