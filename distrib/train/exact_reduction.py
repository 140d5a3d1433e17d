"""Gradients of many lanes on many ranks to one mean, exactly: see `distrib.train.exact` for why it has no order."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._C._distributed_c10d import GradBucket
from torch.nn.parallel import DistributedDataParallel

from distrib.comm.group import Group, Pending
from distrib.data.keyed import key_of
from distrib.train.exact import LIMIT, ExactVector, Exponents, scale_bits
from distrib.train.fixed_point import FixedPoint, memory_order
from distrib.train.reduction import Stop, Sums, already


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

    def __init__(self, group: Group, parameters: list[nn.Parameter], statistic_sizes: list[int], lanes: int,
                 words: FixedPoint) -> None:
        self._group, self._lanes = group, lanes
        self._parameters = parameters
        self._number = {id(parameter): number for number, parameter in enumerate(parameters)}
        self._words = words
        self._bits = scale_bits(lanes, words.word_bits)
        self._exponents = Exponents.unknown(len(parameters), words.margin)
        self._statistics = ExactVector(statistic_sizes, lanes)
        self._accumulators: list[Tensor | None] = [None] * len(parameters)
        self._filled = False
        self._lane_key = 0
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

    def begin_lane(self, key: int) -> None:
        self._lane_key = key

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
                accumulator = torch.empty(self._words.num_words(parameter.numel()), dtype=torch.int32)
                self._accumulators[number] = accumulator
            if not self._filled:
                accumulator.zero_()
            self._add(number, memory_order(gradient), accumulator)
            parameter.grad = None
        self._filled = True

    def finish(self, stop: Stop) -> Sums:
        statistics = self._statistics
        # Everything that is a maximum travels in one small message, beside the sums of the statistics.
        maxima = torch.cat([torch.tensor(self._peaks), statistics.peaks, torch.tensor([float(stop)])])
        maxima = torch.where(maxima <= LIMIT, maxima, math.inf)  # a maximum may lose a NaN, but no infinity
        waiting = [self._group.start_all_reduce(maxima, "max"), self._group.start_all_reduce(statistics.total)]
        for pending in (*waiting, *(bucket.pending for bucket in self._buckets)):
            pending.wait()
        count = len(self._parameters)
        peaks, statistic_peaks = maxima[:count], maxima[count:-1]
        finite = bool(maxima.isfinite().all())
        holds = finite and self._exponents.hold(peaks) and statistics.exponents.hold(statistic_peaks)
        means: list[Tensor] = []
        if holds:
            self._write_gradients()
            means = statistics.mean(self._lanes)
        if finite:
            self._exponents.follow(peaks)
            statistics.exponents.follow(statistic_peaks)
        self._buckets.clear()
        return Sums(holds, finite, means, Stop(int(maxima[-1])))

    def state(self) -> dict[str, Any]:
        return {"gradients": list(self._exponents.values), "statistics": list(self._statistics.exponents.values)}

    def load_state(self, state: dict[str, Any]) -> None:
        self._exponents.values = list(state["gradients"])
        self._statistics.exponents.values = list(state["statistics"])

    def _add(self, number: int, values: Tensor, total: Tensor) -> None:
        peak = self._words.add(values, self._exponents.scale(number, self._bits), total,
                               key_of(self._lane_key, number))
        self._peaks[number] = max(self._peaks[number], peak)

    def _send(self, bucket: GradBucket) -> torch.futures.Future[Tensor]:
        """DDP's hook: quantise a bucket of the last lane, join the lanes before it, start to add over ranks."""
        buffer, parameters = bucket.buffer(), bucket.parameters()
        size = sum(self._words.num_words(parameter.numel()) for parameter in parameters)
        integers = self._integers.get(bucket.index())
        if integers is None or integers.numel() != size:
            integers = self._integers[bucket.index()] = torch.empty(size, dtype=torch.int32)
        for parameter, part, words in self._parts(parameters):
            number = self._number[id(parameter)]
            accumulator = self._accumulators[number] if self._filled else None
            if accumulator is None:
                integers[words].zero_()
            else:
                integers[words].copy_(accumulator)
            self._add(number, buffer[part], integers[words])
        self._buckets.append(_Bucket(buffer, parameters, integers, self._group.start_all_reduce(integers)))
        # DDP must not wait here: the sums are waited for in finish(), so that the wait can be measured
        # and no gradient is written before it is known that the sums hold.
        return already(buffer)

    def _write_gradients(self) -> None:
        for bucket in self._buckets:
            for parameter, part, words in self._parts(bucket.parameters):
                scale = self._exponents.scale(self._number[id(parameter)], self._bits)
                self._words.read(bucket.integers[words], 1.0 / (scale * self._lanes), bucket.buffer[part])

    def _parts(self, parameters: Sequence[Tensor]) -> Iterator[tuple[Tensor, slice, slice]]:
        """Where the values of each parameter lie in their bucket, and where their words."""
        start = first_word = 0
        for parameter in parameters:
            end, last_word = start + parameter.numel(), first_word + self._words.num_words(parameter.numel())
            yield parameter, slice(start, end), slice(first_word, last_word)
            start, first_word = end, last_word


def _unused(parameter: nn.Parameter, parameters: list[nn.Parameter]) -> RuntimeError:
    number = next(i for i, p in enumerate(parameters) if p is parameter)
    return RuntimeError(f"trainable parameter {number} of shape {tuple(parameter.shape)} got no gradient: "
                        "the model does not use it")
