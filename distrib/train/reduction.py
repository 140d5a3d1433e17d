"""Gradients of many lanes on many ranks to one mean, through DistributedDataParallel.

Lanes before a rank's last run under ``no_sync``; ``after_lane`` takes their gradients. The last lane's
gradients come bucket by bucket through DDP's communication hook, so that sending overlaps with backward.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel


class Stop(IntEnum):
    """What a rank wishes at the end of a period; the greatest wish of all ranks is done."""

    NO = 0
    REGROUP = 1
    """Let somebody join, then go on."""
    END = 2
    """Save and end."""


@dataclass(frozen=True)
class Sums:
    """What the lanes of one attempt at a step add up to."""

    holds: bool
    """False: the exponents were too small, and the step has to be done again."""
    finite: bool
    """Whether every gradient and statistic was a finite number, and not beyond what can be summed."""
    statistics: list[Tensor]
    """Means over all lanes of the statistics, float64, 1-d."""
    stop: Stop
    """The greatest of all ranks' wishes."""


class Reduction(Protocol):
    """One way to sum; see `exact_reduction.py` and `fast_reduction.py`."""

    loss_factor: float
    """Factor of each lane's loss."""

    def attach(self, ddp: DistributedDataParallel) -> None:
        """Connect to DDP before its first backward."""
        ...

    def begin(self) -> None:
        """Before the first lane of an attempt."""
        ...

    def begin_lane(self, key: int) -> None:
        """Before a lane's forward. ``key`` is of this seed, step and lane alone: for random numbers in rounding."""
        ...

    def after_lane(self, statistics: list[Tensor], last: bool) -> None:
        """After a lane's backward. ``last`` is the rank's last lane, whose gradients went through the hook."""
        ...

    def finish(self, stop: Stop) -> Sums:
        """Collective: wait for all sums; gradients are in place if ``holds`` and ``finite``."""
        ...

    def state(self) -> dict[str, Any]:
        """What a resumed run needs, as plain JSON values."""
        ...

    def load_state(self, state: dict[str, Any]) -> None: ...


def already(buffer: Tensor) -> torch.futures.Future[Tensor]:
    """What a hook of DDP returns so that DDP does not wait."""
    done: torch.futures.Future[Tensor] = torch.futures.Future()
    done.set_result(buffer)
    return done
