from __future__ import annotations

from itertools import product

import pytest

from distrib.data.order import carried_lanes
from distrib.train.balance import better_shares, lanes_of, share_lanes


@pytest.mark.parametrize(("ranks", "lanes"), [(1, 4), (2, 5), (3, 7), (4, 8)])
def test_no_other_shares_are_done_earlier(ranks: int, lanes: int) -> None:
    for work_s in product((1.0, 1.3, 2.0, 9.0), repeat=ranks):
        counts = share_lanes(work_s, lanes)
        assert sum(counts) == lanes
        assert min(counts) >= 1
        best = min(max(c * s for c, s in zip(others, work_s, strict=True))
                   for others in product(range(1, lanes + 1), repeat=ranks) if sum(others) == lanes)
        assert max(c * s for c, s in zip(counts, work_s, strict=True)) == pytest.approx(best)


def test_lanes_move_only_if_it_is_worth_it() -> None:
    assert better_shares([4, 4], [1.0, 1.0]) is None
    assert better_shares([4, 4], [1.0, 1.05]) is None
    moved = better_shares([4, 4], [1.0, 2.5])
    assert moved == [6, 2]
    assert better_shares(moved, [1.0, 2.5]) is None
    assert better_shares(moved, [1.0, 1.0]) == [4, 4]


@pytest.mark.parametrize(("size", "lanes"), [(1, 8), (3, 8), (5, 7)])
def test_every_lane_is_carried_once(size: int, lanes: int) -> None:
    even = [len(carried_lanes(rank, size, lanes)) for rank in range(size)]
    assert [lanes_of(rank, even) for rank in range(size)] == [carried_lanes(rank, size, lanes) for rank in range(size)]
