"""A slower pace: each lane trains by itself for some steps, then all take one step towards the lanes' mean.

DiLoCo (Douillard et al., 2023, arXiv:2311.08105) with lanes for workers. A lane begins a round with the common
weights and an optimiser without memory, so that it carries nothing from round to round: any rank can carry it
next, and weights and outer momentum are all that a checkpoint at a round's end holds. The outer gradient is the
mean over lanes of (common weights - the lane's), which an SGD with Nesterov momentum takes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from distrib.comm.group import Group
from distrib.data.stream import Stream
from distrib.train.exact import LIMIT, ExactVector
from distrib.train.fixed_point import memory_order
from distrib.train.lane import LaneBuffers, LanePass, restore, rounding_key
from distrib.train.optimise import set_learning_rate
from distrib.train.outer_sum import LaneMove, OuterSum
from distrib.train.pace import Period, StepMeans, Witness
from distrib.train.reduction import Stop


class LocalRounds:
    """See `distrib.train.pace.Pace`; a round ends at multiples of ``local_steps``, and at the run's end.

    ``stream`` delivers one lane's batch at a time, all steps of a round before the next lane. Memory: beside the
    model, one copy of its weights and one for each lane that this rank carries.
    """

    def __init__(self, model: nn.Module, outer: torch.optim.Optimizer, group: Group, outer_sum: OuterSum,
                 lane_pass: LanePass, stream: Stream, *, lanes: Sequence[int], num_lanes: int, local_steps: int,
                 total_steps: int, seed: int, inner: Callable[[], torch.optim.Optimizer],
                 rate: Callable[[int], float], clip_norm: float | None, witness: Witness | None = None) -> None:
        self._outer, self._group, self._outer_sum = outer, group, outer_sum
        self._pass, self._stream, self._lanes, self._num_lanes = lane_pass, stream, lanes, num_lanes
        self._local_steps, self._total_steps, self._seed = local_steps, total_steps, seed
        self._inner, self._rate, self._clip_norm, self._witness = inner, rate, clip_norm, witness
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self._buffers = LaneBuffers(model)
        self._data_s = 0.0
        self._lane_batch = 0

    def run(self, step: int, stop: Stop) -> Period:
        start, self._data_s = time.perf_counter(), 0.0
        end = min((step // self._local_steps + 1) * self._local_steps, self._total_steps)
        common = [p.detach().clone() for p in self._parameters]
        self._buffers.mark()
        try:
            return self._round(range(step, end), common, stop, start)
        except BaseException:
            with torch.no_grad():
                restore(self._parameters, common)
            self._buffers.rewind()
            raise

    def _round(self, numbers: range, common: Sequence[Tensor], stop: Stop, start: float) -> Period:
        """The steps ``numbers`` from the ``common`` weights on, which began at the time ``start``."""
        moves, statistics = [], []
        for lane in self._lanes:
            self._buffers.rewind()
            losses, corrects = self._train_lane(lane, numbers)
            moves.append(LaneMove(rounding_key(self._seed, numbers.start, lane), self._moved_from(common)))
            statistics.append([*(b.clone() for b in self._buffers.statistics), *losses, *corrects])
            with torch.no_grad():
                restore(self._parameters, common)
        computed = time.perf_counter()
        means, diverged, stop = self._meet(moves, statistics, stop)
        if diverged is None:
            self._outer.step()
            self._outer.zero_grad(set_to_none=True)
            self._buffers.take(means[:len(self._buffers.statistics)])
        else:
            diverged = min(diverged + 1, len(numbers))
        steps = self._step_means(numbers, means)
        return Period(steps, diverged, stop, 0, self._data_s, computed - start - self._data_s,
                      time.perf_counter() - computed)

    def state(self) -> dict[str, Any]:
        return {}

    def _train_lane(self, lane: int, steps: range) -> tuple[list[Tensor], list[Tensor]]:
        """From the common weights on, with a new optimiser; returns each step's loss and number of right answers."""
        optimizer = self._inner()
        losses, corrects = [], []
        for step in steps:
            start = time.perf_counter()
            (batch,) = self._stream.take()
            self._data_s += time.perf_counter() - start
            assert batch.lane == lane
            optimizer.zero_grad(set_to_none=True)
            loss, correct = self._pass.run(step, batch)
            loss.backward()
            if self._clip_norm is not None:
                torch.nn.utils.clip_grad_norm_(self._parameters, self._clip_norm)
            set_learning_rate(optimizer, self._rate(step))
            optimizer.step()
            losses.append(loss.detach())
            corrects.append(correct)
            self._lane_batch = batch.labels_N.size
            if self._witness is not None:
                self._witness(step + 1, [batch])
        return losses, corrects

    def _moved_from(self, common: Sequence[Tensor]) -> list[Tensor]:
        return [memory_order(before - now.detach()) for before, now in zip(common, self._parameters, strict=True)]

    def _meet(self, moves: Sequence[LaneMove], statistics: Sequence[list[Tensor]],
              stop: Stop) -> tuple[list[Tensor], int | None, Stop]:
        """Sums over all lanes: outer gradients into ``grad``, (means of statistics, first step that diverged, stop).

        The means are empty if something is not finite.
        """
        vector = ExactVector([tensor.numel() for tensor in statistics[0]], self._num_lanes)
        peaks = torch.stack([torch.cat([move.peaks(), vector.peaks_of(lane), torch.tensor([float(stop)])])
                             for move, lane in zip(moves, statistics, strict=True)])
        maxima = torch.where(peaks <= LIMIT, peaks, math.inf).amax(0)
        self._group.all_reduce(maxima, "max")
        count = len(self._parameters)
        of_moves, of_statistics, any_stop = maxima[:count], maxima[count:-1], Stop(int(maxima[-1]))
        if not maxima.isfinite().all():
            of_losses = of_statistics[len(self._buffers.statistics):]
            bad = (~of_losses.isfinite()).nonzero()
            return [], int(bad[0]) if len(bad) else len(of_losses), any_stop
        vector.exponents.follow(of_statistics)
        vector.clear()
        for lane in statistics:
            vector.add(lane)
        pending = self._group.start_all_reduce(vector.total)
        for number, mean in self._outer_sum.means(moves, of_moves):
            parameter = self._parameters[number]
            parameter.grad = torch.empty_like(parameter)
            memory_order(parameter.grad).copy_(mean)
        pending.wait()
        return vector.mean(self._num_lanes), None, any_stop

    def _step_means(self, steps: range, means: Sequence[Tensor]) -> list[StepMeans]:
        if not means:
            return [StepMeans(math.nan, math.nan, self._rate(step)) for step in steps]
        numbers = [float(mean) for mean in means[len(self._buffers.statistics):]]
        losses, corrects = numbers[:len(steps)], numbers[len(steps):]
        return [StepMeans(loss, correct / self._lane_batch, self._rate(step))
                for step, loss, correct in zip(steps, losses, corrects, strict=True)]
