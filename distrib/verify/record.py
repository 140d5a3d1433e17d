"""What a run's folder tells of the run, as plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

State = Mapping[str, str | None]
"""Digests of the tensors after a step: ``model``, ``ema`` (None if the run keeps none), and ``optimizer`` if known."""


@dataclass(frozen=True)
class Result:
    """What a run said when it finished."""

    step: int
    state: State


@dataclass(frozen=True)
class Record:
    """One run, but for its tensors."""

    name: str
    experiment: Mapping[str, Any]
    """Resolved, as JSON values."""
    dataset_sha256: str
    starts: tuple[Mapping[str, Any], ...]
    """The environment of every start, in order of time; ``step`` is the last step done before it."""
    losses: Mapping[int, float]
    """By step; not a number for the step at which the run diverged."""
    checkpoints: frozenset[int]
    """Steps whose tensors are on the disk; whether they are whole shows when they are read."""
    result: Result | None

    @property
    def states(self) -> frozenset[int]:
        """Steps after which digests of the weights can be had."""
        return self.checkpoints | ({self.result.step} if self.result else set())

    @property
    def last_step(self) -> int:
        """The last step that left a trace; 0 if none did."""
        return max((0, *self.losses, *self.states))

    def up_to(self, step: int) -> Record:
        """The same run as if it had ended there."""
        return replace(
            self, losses={one: loss for one, loss in self.losses.items() if one <= step},
            checkpoints=frozenset(one for one in self.checkpoints if one <= step),
            result=self.result if self.result and self.result.step <= step else None,
        )
