from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from distrib.errors import WorldError
from distrib.train.guard import MOST_FAULTS, Guard, whole_source
from distrib.train.loop import Progress
from distrib.world import World


class Ranks:
    """Stands for a group of which this process is one rank: the others' rows are given."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size, self.world = rank, size, World(rank, size, host=f"node{rank}")
        self.same: Sequence[bool] = [True] * size

    def rows_of_all(self, row: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.stack([row if same else row + 1 for same in self.same])

    def all_reduce(self, tensor: torch.Tensor, operation: str = "sum") -> None:
        """What this rank says stands."""


def guard(ranks: Ranks, said: list[str]) -> tuple[Guard, dict[str, torch.Tensor]]:
    made = Guard(10, said.append)
    tensors = {"w": torch.arange(3.0)}
    assert made.agree(ranks, tensors, {"e": [1]}, Progress(20))  # type: ignore[arg-type]
    return made, tensors


def test_what_all_agree_on_is_kept_apart_from_what_trains_on() -> None:
    ranks, said = Ranks(0, 3), list[str]()
    made, tensors = guard(ranks, said)
    tensors["w"][0] = 5
    assert made.kept is not None
    assert made.kept.tensors["w"][0] == 0
    assert made.kept.is_whole
    assert made.kept.progress.step == 20
    ranks.same = [True, False, True]
    assert not made.agree(ranks, tensors, {"e": [2]}, Progress(30))  # type: ignore[arg-type]
    assert made.kept.progress.step == 20
    assert "step 30" in said[0]
    assert "go back to step 20" in said[0]


def test_a_copy_that_was_spoilt_itself_is_not_gone_back_to() -> None:
    made, _ = guard(Ranks(0, 2), [])
    assert made.kept is not None
    made.kept.tensors["w"][1] = 7
    assert not made.kept.is_whole
    with pytest.raises(WorldError, match="no rank has a copy"):
        whole_source(Ranks(0, 2), made.kept.is_whole)  # type: ignore[arg-type]


def test_a_rank_that_differs_again_and_again_is_ended() -> None:
    ranks = Ranks(2, 3)
    ranks.same = [True, True, True]
    made, tensors = guard(ranks, [])
    ranks.same = [False, False, True]  # the two others agree
    for _ in range(MOST_FAULTS - 1):
        assert not made.agree(ranks, tensors, {}, Progress(30))  # type: ignore[arg-type]
    with pytest.raises(WorldError, match="rank 2 on node2"):
        made.agree(ranks, tensors, {}, Progress(30))  # type: ignore[arg-type]


def test_when_comparisons_are_due() -> None:
    made = Guard(10, print)
    assert made.is_due(9, 10)
    assert made.is_due(7, 14)
    assert not made.is_due(10, 19)
    assert not Guard(0, print).is_due(9, 10)
