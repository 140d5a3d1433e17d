"""The mean of lanes' moves: exact, near the true mean, whatever the order and the size of messages."""

from __future__ import annotations

import pytest
import torch

from distrib.comm.group import Group
from distrib.data.keyed import key_of
from distrib.train import outer_sum
from distrib.train.fixed_point import FixedPoint
from distrib.train.outer_sum import LaneMove, OuterSum
from distrib.train.packed import PackedFixedPoint

SIZES, LANES = [7, 1, 4000, 33, 0, 2], 5


def lane_moves() -> list[LaneMove]:
    generator = torch.Generator().manual_seed(3)
    return [LaneMove(key_of(lane), [torch.randn(size, generator=generator) * 10.0 ** -(number % 4)
                                    for number, size in enumerate(SIZES)]) for lane in range(LANES)]


@pytest.mark.parametrize(("words", "bits"), [(FixedPoint(), 27), (PackedFixedPoint(), 11),
                                             (PackedFixedPoint(fields=3), 5)])
def test_means_are_exact_and_have_no_order(group: Group, monkeypatch: pytest.MonkeyPatch, words: FixedPoint,
                                           bits: int) -> None:
    moves = lane_moves()
    peaks = torch.stack([move.peaks() for move in moves]).amax(0)
    found = []
    for order, message_bytes in (([0, 1, 2, 3, 4], 25_000_000), ([3, 1, 4, 0, 2], 25_000_000), ([4, 3, 2, 1, 0], 64)):
        monkeypatch.setattr(outer_sum, "_MESSAGE_BYTES", message_bytes)
        means = dict(OuterSum(group, SIZES, LANES, words).means([moves[lane] for lane in order], peaks))
        assert list(means) == list(range(len(SIZES)))
        found.append(list(means.values()))
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))
    for number, mean in enumerate(found[0]):
        true = torch.stack([move.values[number] for move in moves]).double().mean(0)
        assert ((mean - true).abs() <= 2 * peaks[number] * 2.0**-bits + true.abs() * 1e-7).all()


def test_no_peak_overflows_though_there_is_no_margin(group: Group) -> None:
    for value in (1.0, -1.0, 1.9999999, 2.0**-30):
        moves = [LaneMove(key_of(lane), [torch.full((size,), value) for size in SIZES]) for lane in range(LANES)]
        peaks = torch.full((len(SIZES),), abs(value))
        for words, error in ((FixedPoint(), 1e-3), (PackedFixedPoint(), 1e-3), (PackedFixedPoint(fields=3), 2.0**-4)):
            for number, mean in OuterSum(group, SIZES, LANES, words).means(moves, peaks):
                torch.testing.assert_close(mean, torch.full((SIZES[number],), value), rtol=error, atol=0)


def test_what_is_not_finite_shows_in_the_peaks() -> None:
    for value in (torch.nan, torch.inf, -torch.inf):
        values = [torch.zeros(3), torch.tensor([1.0, value])]
        assert LaneMove(0, values).peaks().isfinite().tolist() == [True, False]
