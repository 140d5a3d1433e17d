"""Fewer bytes for ordinary sums: what DDP's communication hook sends in a bucket's place."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor
from torch._C._distributed_c10d import GradBucket
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState, powerSGD_hook
from torch.nn.parallel import DistributedDataParallel

from distrib.comm.group import Group, Pending
from distrib.config import TrainConfig
from distrib.errors import ConfigError, WorldError
from distrib.train.reduction import already


class Compression(Protocol):
    """Turns the gradients in DDP's buckets into their mean over ranks."""

    def attach(self, ddp: DistributedDataParallel) -> None:
        """Collective: connect to DDP before its first backward. Raises ConfigError if the backend can not do it."""
        ...

    def finish(self) -> None:
        """Collective, after backward: the means are in the buckets."""
        ...


class Plain:
    """DDP's own all-reduce in float32."""

    def attach(self, ddp: DistributedDataParallel) -> None:
        """Nothing to do."""

    def finish(self) -> None:
        """DDP has waited."""


class BFloat16:
    """Buckets are cast to bfloat16, added as such by the backend, and cast back: half the bytes, 8 bits of mantissa."""

    def __init__(self, group: Group) -> None:
        self._group = group
        self._sent: list[tuple[Tensor, Tensor, Pending]] = []

    def attach(self, ddp: DistributedDataParallel) -> None:
        probe = torch.ones(1, dtype=torch.bfloat16)
        try:
            self._group.all_reduce(probe)
        except WorldError as error:
            raise ConfigError(f"the backend {self._group.backend} can not add bfloat16 numbers: {error.fact}",
                              "nothing was started", "take train.compress = none, or reduction = exact16") from error
        # DDP inspects a hook's annotations, which are strings here.
        ddp.register_comm_hook(None, lambda _, bucket: self._send(bucket))

    def finish(self) -> None:
        for buffer, small, pending in self._sent:
            pending.wait()
            torch.div(small.float(), self._group.size, out=buffer)
        self._sent.clear()

    def _send(self, bucket: GradBucket) -> torch.futures.Future[Tensor]:
        buffer = bucket.buffer()
        small = buffer.bfloat16()
        self._sent.append((buffer, small, self._group.start_all_reduce(small)))
        return already(buffer)


class PowerSGD:
    """Low-rank gradients with error feedback (Vogels et al., 2019, arXiv:1905.13727): torch's own hook.

    The first ``start_step`` steps of a process are sent whole. The errors that were held back, and the bases, are
    each rank's own and are in no checkpoint: a resumed run begins them anew, after ``start_step`` whole steps.
    """

    def __init__(self, rank: int, start_step: int, seed: int) -> None:
        # No group is named: torch's default group is ours, whatever its backend.
        self._state = PowerSGDState(None, matrix_approximation_rank=rank, start_powerSGD_iter=start_step,
                                    random_seed=seed % (1 << 32))

    def attach(self, ddp: DistributedDataParallel) -> None:
        ddp.register_comm_hook(None, lambda _, bucket: self._send(bucket))

    def finish(self) -> None:
        """Nothing is under way."""

    def _send(self, bucket: GradBucket) -> torch.futures.Future[Tensor]:
        # Torch's hook starts its later messages from callbacks, which for several buckets run in an order of their
        # own on every rank, while the messages of a CPU backend are matched by their order. So one bucket at a time.
        return already(powerSGD_hook(self._state, bucket).wait())


def build_compression(train: TrainConfig, group: Group, seed: int) -> Compression:
    """What ``train.compress`` names."""
    if train.compress == "bf16":
        return BFloat16(group)
    if train.compress == "powersgd":
        return PowerSGD(train.powersgd_rank, train.powersgd_start, seed)
    return Plain()
