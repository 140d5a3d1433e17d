"""One training step: every lane of this rank forward and backward, one mean over all lanes."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from distrib.data.stream import Batch
from distrib.train.lane import LaneBuffers, LaneLoss, LanePass, Prepare, averaged_buffers, rounding_key
from distrib.train.reduction import Reduction, Stop

_MOST_ATTEMPTS = 8


@dataclass(frozen=True)
class StepResult:
    """What a step showed; the same on all ranks but for the seconds."""

    loss: float
    accuracy: float
    finite: bool
    """False: the loss or a gradient is no finite number; the gradients must not be used."""
    stop: Stop
    repeats: int
    """Attempts beyond the first, each because magnitudes grew beyond their exponents."""
    compute_s: float
    communication_s: float
    """Seconds spent waiting for sums; what overlapped with computing does not count."""


class LaneStep:
    """Runs steps. Lanes start from the same buffers, which end as the mean over lanes."""

    def __init__(self, model: nn.Module, ddp: DistributedDataParallel, reduction: Reduction, *, loss: LaneLoss,
                 prepare: Prepare, autocast: bool, seed: int) -> None:
        self._ddp, self._reduction, self._seed = ddp, reduction, seed
        self._pass = LanePass(ddp, loss=loss, prepare=prepare, autocast=autocast, seed=seed)
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self._buffers = LaneBuffers(model)

    def run(self, step: int, batches: Sequence[Batch], stop: Stop) -> StepResult:
        """Collective. Leaves the mean gradient in every parameter's ``grad``; changes no parameter.

        What is raised leaves buffers and exponents as they were before.
        """
        self._buffers.mark()
        before = self._reduction.state()
        try:
            return self._attempts(step, batches, stop)
        except BaseException:
            self._buffers.rewind()
            self._reduction.load_state(before)
            raise

    def _attempts(self, step: int, batches: Sequence[Batch], stop: Stop) -> StepResult:
        compute_s = communication_s = 0.0
        for repeats in range(_MOST_ATTEMPTS):  # noqa: B007
            start = time.perf_counter()
            self._reduction.begin()
            for parameter in self._parameters:
                parameter.grad = None
            for number, batch in enumerate(batches):
                self._buffers.rewind()
                self._lane(step, batch, last=number == len(batches) - 1)
            computed = time.perf_counter()
            sums = self._reduction.finish(stop)
            compute_s += computed - start
            communication_s += time.perf_counter() - computed
            if sums.holds or not sums.finite:
                break
            self._buffers.rewind()
        else:
            raise RuntimeError(f"step {step}: the exponents did not settle in {_MOST_ATTEMPTS} attempts")
        loss = accuracy = float("nan")
        if sums.finite:
            *statistics, loss_mean, correct_mean = sums.statistics
            self._buffers.take(statistics)
            loss, accuracy = float(loss_mean), float(correct_mean) / batches[0].labels_N.size
        return StepResult(loss, accuracy, sums.finite, sums.stop, repeats, compute_s, communication_s)

    def _lane(self, step: int, batch: Batch, *, last: bool) -> None:
        self._reduction.begin_lane(rounding_key(self._seed, step, batch.lane))
        with contextlib.nullcontext() if last else self._ddp.no_sync():
            loss, correct = self._pass.run(step, batch)
            (loss * self._reduction.loss_factor).backward()
        self._reduction.after_lane([*self._buffers.statistics, loss, correct], last)


def statistic_sizes(model: nn.Module) -> list[int]:
    """Elements of each statistic of a step: the averaged buffers, the loss, the number of right answers."""
    return [buffer.numel() for buffer in averaged_buffers(model)] + [1, 1]
