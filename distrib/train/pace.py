"""How often lanes meet: the seam between the training loop and what happens from one meeting to the next."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from distrib.data.stream import Batch
from distrib.train.reduction import Stop


@dataclass(frozen=True)
class StepMeans:
    """One step's means over all lanes."""

    loss: float
    accuracy: float
    rate: float
    """The learning rate that the step used."""


@dataclass(frozen=True)
class Period:
    """The steps from one meeting of the lanes to the next; the same on all ranks but for the seconds."""

    steps: list[StepMeans]
    diverged: int | None
    """Number, from 1, of the first of these steps with a number that is not finite; the weights were not changed."""
    stop: Stop
    """The greatest of all ranks' wishes."""
    repeats: int
    data_s: float
    compute_s: float
    communication_s: float
    """Seconds of the whole period spent waiting for data, computing, and waiting for sums."""


class Pace(Protocol):
    """Trains one period at a time; see `each_step.py` and `local_round.py`. At its ends all ranks hold the same."""

    def run(self, step: int, stop: Stop) -> Period:
        """Collective: train the period that begins after ``step`` steps, itself the end of one.

        What is raised in the middle of it, by a collective or by reading, leaves everything as it was before.
        """
        ...

    def state(self) -> dict[str, Any]:
        """What a resumed run needs beside weights and optimiser, as plain JSON values."""
        ...


class Witness(Protocol):
    """Sees which samples each step (from 1) trained on; lanes of a step may come one by one."""

    def __call__(self, step: int, batches: list[Batch]) -> None: ...
