"""The usual pace: lanes meet at every step, and one optimiser takes the mean of their gradients."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from distrib.data.stream import Stream
from distrib.train.optimise import set_learning_rate
from distrib.train.pace import Period, StepMeans, Witness
from distrib.train.reduction import Reduction, Stop
from distrib.train.step import LaneStep


class EachStep:
    """See `distrib.train.pace.Pace`. ``rate`` gives the learning rate of a step, from 0."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, reduction: Reduction, lane_step: LaneStep,
                 stream: Stream, *, rate: Callable[[int], float], clip_norm: float | None,
                 witness: Witness | None = None) -> None:
        self._model, self._optimizer, self._reduction = model, optimizer, reduction
        self._lane_step, self._stream, self._rate = lane_step, stream, rate
        self._clip_norm, self._witness = clip_norm, witness

    def run(self, step: int, stop: Stop) -> Period:
        start = time.perf_counter()
        batches = self._stream.take()
        data_s = time.perf_counter() - start
        result, rate = self._lane_step.run(step, batches, stop), self._rate(step)
        if result.finite:
            if self._clip_norm is not None:
                torch.nn.utils.clip_grad_norm_(self._model.parameters(), self._clip_norm)
            set_learning_rate(self._optimizer, rate)
            self._optimizer.step()
            if self._witness is not None:
                self._witness(step + 1, batches)
        return Period([StepMeans(result.loss, result.accuracy, rate)], None if result.finite else 1, result.stop,
                      result.repeats, data_s, result.compute_s, result.communication_s)

    def state(self) -> dict[str, Any]:
        return self._reduction.state()
