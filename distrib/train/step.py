"""One training step: every lane of this rank forward and backward, one mean over all lanes."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from distrib.data.keyed import key_of
from distrib.data.stream import Batch
from distrib.models.weights import is_frozen
from distrib.train.reduction import Reduction

_MODEL_RANDOMNESS, _ROUNDING = 11, 13
_MOST_ATTEMPTS = 8

LaneLoss = Callable[[Tensor, Tensor], Tensor]
"""(logits_NK, labels_N) -> scalar loss."""
Prepare = Callable[[Tensor], Tensor]
"""uint8 images_NHWC -> what the model takes."""


@dataclass(frozen=True)
class StepResult:
    """What a step showed; the same on all ranks but for the seconds."""

    loss: float
    accuracy: float
    finite: bool
    """False: the loss or a gradient is no finite number; the gradients must not be used."""
    stop: bool
    repeats: int
    """Attempts beyond the first, each because magnitudes grew beyond their exponents."""
    compute_s: float
    communication_s: float
    """Seconds spent waiting for sums; what overlapped with computing does not count."""


class LaneStep:
    """Runs steps. Lanes start from the same buffers, which end as the mean over lanes."""

    def __init__(self, model: nn.Module, ddp: DistributedDataParallel, reduction: Reduction, *, loss: LaneLoss,
                 prepare: Prepare, autocast: bool, seed: int) -> None:
        self._ddp, self._reduction, self._loss, self._prepare = ddp, reduction, loss, prepare
        self._autocast, self._seed = autocast, seed
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self._statistics = averaged_buffers(model)
        self._counters = [b for b in model.buffers() if not b.is_floating_point()]

    def run(self, step: int, batches: Sequence[Batch], stop: bool) -> StepResult:
        """Collective. Leaves the mean gradient in every parameter's ``grad``; changes no parameter."""
        before = [b.clone() for b in self._statistics]
        counters = [b.clone() for b in self._counters]
        compute_s = communication_s = 0.0
        for repeats in range(_MOST_ATTEMPTS):  # noqa: B007
            start = time.perf_counter()
            self._reduction.begin()
            for parameter in self._parameters:
                parameter.grad = None
            for number, batch in enumerate(batches):
                _restore(self._statistics, before)
                _restore(self._counters, counters)
                self._lane(step, batch, last=number == len(batches) - 1)
            computed = time.perf_counter()
            sums = self._reduction.finish(stop)
            compute_s += computed - start
            communication_s += time.perf_counter() - computed
            if sums.holds or not sums.finite:
                break
            _restore(self._statistics, before)
            _restore(self._counters, counters)
        else:
            raise RuntimeError(f"step {step}: the exponents did not settle in {_MOST_ATTEMPTS} attempts")
        loss = accuracy = float("nan")
        if sums.finite:
            *statistics, loss_mean, correct_mean = sums.statistics
            for buffer, mean in zip(self._statistics, statistics, strict=True):
                buffer.copy_(mean.view_as(buffer))
            loss, accuracy = float(loss_mean), float(correct_mean) / batches[0].labels_N.size
        return StepResult(loss, accuracy, sums.finite, sums.stop, repeats, compute_s, communication_s)

    def _lane(self, step: int, batch: Batch, *, last: bool) -> None:
        # Dropout and the like draw from torch's default generator: make it the lane's own.
        torch.manual_seed(key_of(_MODEL_RANDOMNESS, self._seed, step, batch.lane) >> 1)
        self._reduction.begin_lane(key_of(_ROUNDING, self._seed, step, batch.lane))
        labels_N = torch.from_numpy(batch.labels_N)
        with contextlib.nullcontext() if last else self._ddp.no_sync():
            with torch.autocast("cpu", torch.bfloat16, enabled=self._autocast):
                logits_NK = self._ddp(self._prepare(torch.from_numpy(batch.images_NHWC)))
            logits_NK = logits_NK.float()
            loss = self._loss(logits_NK, labels_N)
            (loss * self._reduction.loss_factor).backward()
        correct = (logits_NK.detach().argmax(1) == labels_N).sum()
        self._reduction.after_lane([*self._statistics, loss, correct], last)


def averaged_buffers(model: nn.Module) -> list[Tensor]:
    """Buffers that training changes and that are averaged over lanes: the floating-point ones of layers that train."""
    return [buffer for module in model.modules() if not is_frozen(module)
            for buffer in module.buffers(recurse=False) if buffer.is_floating_point()]


def statistic_sizes(model: nn.Module) -> list[int]:
    """Elements of each statistic of a step: the averaged buffers, the loss, the number of right answers."""
    return [buffer.numel() for buffer in averaged_buffers(model)] + [1, 1]


def _restore(tensors: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    for tensor, value in zip(tensors, values, strict=True):
        tensor.copy_(value)
