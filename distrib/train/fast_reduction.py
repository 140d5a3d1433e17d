"""Ordinary floating-point sums over lanes and ranks, whole or compressed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from distrib.comm.group import Group
from distrib.train.compress import Compression
from distrib.train.reduction import Stop, Sums


class FastReduction:
    """Ordinary floating-point sums through DDP's buckets; the last bits depend on the world size."""

    def __init__(self, group: Group, parameters: list[nn.Parameter], statistic_sizes: list[int], lanes: int,
                 compression: Compression) -> None:
        self._group, self._parameters, self._lanes = group, parameters, lanes
        self._sizes, self._compression = statistic_sizes, compression
        # DDP takes the mean over ranks, which may carry different numbers of lanes.
        self.loss_factor = group.size / lanes
        self._total = torch.zeros(sum(statistic_sizes) + 1, dtype=torch.float64)

    def attach(self, ddp: DistributedDataParallel) -> None:
        self._compression.attach(ddp)

    def begin(self) -> None:
        self._total.zero_()

    def begin_lane(self, key: int) -> None:
        """Nothing: no random numbers are needed."""

    def after_lane(self, statistics: list[Tensor], last: bool) -> None:  # noqa: ARG002  # DDP sends the last
        self._total[:-1] += torch.cat([tensor.detach().reshape(-1).double() for tensor in statistics])

    def finish(self, stop: Stop) -> Sums:
        self._compression.finish()
        self._total[-1] = float(stop >= Stop.END)  # nobody joins such a run
        self._group.all_reduce(self._total)
        finite = all(bool(p.grad.isfinite().all()) for p in self._parameters if p.grad is not None)
        means = list((self._total[:-1] / self._lanes).split(self._sizes))
        return Sums(True, finite and bool(self._total.isfinite().all()), means,
                    Stop.END if self._total[-1] > 0 else Stop.NO)

    def state(self) -> dict[str, Any]:
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """Nothing is carried from step to step."""
