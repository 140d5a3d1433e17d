"""One lane's micro-batch, forward: the same wherever and in whatever order lanes are computed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from distrib.data.keyed import key_of
from distrib.data.stream import Batch
from distrib.models.weights import is_frozen

_MODEL_RANDOMNESS, _ROUNDING = 11, 13

LaneLoss = Callable[[Tensor, Tensor], Tensor]
"""(logits_NK, labels_N) -> scalar loss."""
Prepare = Callable[[Tensor], Tensor]
"""uint8 images_NHWC -> what the model takes."""


class LanePass:
    """A lane's forward pass. ``model`` maps what ``prepare`` gives to logits_NK; ``seed`` is the experiment's."""

    def __init__(self, model: Callable[[Tensor], Tensor], *, loss: LaneLoss, prepare: Prepare, autocast: bool,
                 seed: int) -> None:
        self._model, self._loss, self._prepare = model, loss, prepare
        self._autocast, self._seed = autocast, seed

    def run(self, step: int, batch: Batch) -> tuple[Tensor, Tensor]:
        """(the loss, with its graph; the number of right answers). Dropout is keyed by seed, step and lane."""
        # Dropout and the like draw from torch's default generator: make it the lane's own.
        torch.manual_seed(key_of(_MODEL_RANDOMNESS, self._seed, step, batch.lane) >> 1)
        labels_N = torch.from_numpy(batch.labels_N)
        with torch.autocast("cpu", torch.bfloat16, enabled=self._autocast):
            logits_NK = self._model(self._prepare(torch.from_numpy(batch.images_NHWC)))
        logits_NK = logits_NK.float()
        return self._loss(logits_NK, labels_N), (logits_NK.detach().argmax(1) == labels_N).sum()


def rounding_key(seed: int, step: int, lane: int) -> int:
    """Keys the random numbers in rounding what a lane gives to a sum."""
    return key_of(_ROUNDING, seed, step, lane)


class LaneBuffers:
    """A model's buffers that training changes: every lane starts from the same ones, which end as their mean."""

    def __init__(self, model: nn.Module) -> None:
        self.statistics = averaged_buffers(model)
        self._counters = [b for b in model.buffers() if not b.is_floating_point()]
        self._start: list[Tensor] = []

    def mark(self) -> None:
        """Remember the values as those that lanes start from."""
        self._start = [b.clone() for b in (*self.statistics, *self._counters)]

    def rewind(self) -> None:
        """Back to what `mark` saw."""
        restore((*self.statistics, *self._counters), self._start)

    def take(self, means: Sequence[Tensor]) -> None:
        """The statistics become the means over lanes, given in 1-d. Counters stay: they are equal in all lanes."""
        for buffer, mean in zip(self.statistics, means, strict=True):
            buffer.copy_(mean.view_as(buffer))


def averaged_buffers(model: nn.Module) -> list[Tensor]:
    """Buffers that training changes and that are averaged over lanes: the floating-point ones of layers that train."""
    return [buffer for module in model.modules() if not is_frozen(module)
            for buffer in module.buffers(recurse=False) if buffer.is_floating_point()]


def restore(tensors: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """Copy ``values`` into ``tensors``."""
    for tensor, value in zip(tensors, values, strict=True):
        tensor.copy_(value)
