"""Quantising: sums without an order, the right rounding, magnitudes that tell of overflow."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distrib.train.exact import power_of_two, scale_bits
from distrib.train.fixed_point import FixedPoint
from distrib.train.packed import PackedFixedPoint

LANES = 5
ALONE, TOGETHER = FixedPoint(), FixedPoint(threads=3)
PACKED = PackedFixedPoint(), PackedFixedPoint(threads=3)


def exact_sum(lanes: list[torch.Tensor], exponent: int) -> torch.Tensor:
    total = torch.zeros(lanes[0].numel(), dtype=torch.int32)
    scale = power_of_two(exponent, scale_bits(LANES, 32))
    for lane in lanes:
        ALONE.add(lane, scale, total)
    return total


@settings(max_examples=25)
@given(st.integers(0, 2**31), st.integers(1, 70_000), st.integers(-60, 30))
def test_the_sum_of_lanes_has_no_order(seed: int, count: int, magnitude: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    lanes = [torch.randn(count, generator=generator) * 2.0**magnitude for _ in range(LANES)]
    exponent = math.frexp(max(float(lane.abs().max()) for lane in lanes))[1]
    sums = [exact_sum(list(order), exponent) for order in itertools.islice(itertools.permutations(lanes), 0, 120, 29)]
    for other in sums[1:]:
        assert torch.equal(sums[0], other)
    mean = torch.empty(count)
    ALONE.read(sums[0], 1 / (power_of_two(exponent, scale_bits(LANES, 32)) * LANES), mean)
    true = torch.stack(lanes).double().mean(0)
    # Rounding to the grid loses at most half a unit a lane; the result is then rounded to 24 bits.
    grid = 2.0 ** (exponent + 2 - scale_bits(LANES, 32))
    assert ((mean.double() - true).abs() <= 0.5 * grid + true.abs() * 2.0**-23).all()


@pytest.mark.parametrize("lanes", [1, 2, 3, 8, 9, 64, 1000])
def test_the_largest_promised_values_do_not_overflow(lanes: int) -> None:
    bits = scale_bits(lanes, 32)
    values, total = torch.full((10,), 4.0), torch.zeros(10, dtype=torch.int32)  # exponent 0 promises up to 2**2
    for _ in range(lanes):
        ALONE.add(values, power_of_two(0, bits), total)
    assert (total.long() == lanes * round(4.0 * power_of_two(0, bits))).all()


@pytest.mark.parametrize("work", [ALONE, TOGETHER, *PACKED])
def test_magnitudes_are_exact_and_show_what_is_not_finite(work: FixedPoint) -> None:
    values, total = torch.zeros(600_001), torch.zeros(work.num_words(600_001), dtype=torch.int32)
    values[70_000] = -3.25
    assert work.add(values, 1.0, total) == 3.25
    for bad in (math.nan, -math.nan, math.inf, -math.inf):
        for place in (0, 300_000, 600_000):
            spoilt = values.clone()
            spoilt[place] = bad
            assert work.add(spoilt, 1.0, total) == math.inf
    assert work.add(torch.empty(0), 1.0, total[:0]) == 0.0


@pytest.mark.parametrize("work", [ALONE, TOGETHER])
@pytest.mark.parametrize("count", [0, 1, 7, 1000, (1 << 18) + 1, 700_003])
def test_every_element_is_rounded_to_the_nearest_even(work: FixedPoint, count: int) -> None:
    values = torch.randn(count, generator=torch.Generator().manual_seed(count)) * 100
    values[: count // 2].round_().add_(0.5)  # halves
    before = torch.arange(count, dtype=torch.int32)
    total = before.clone()
    work.add(values, 1.0, total)
    assert torch.equal(total, before + values.round().int())
    total.zero_()
    work.add(values, 4.0, total)
    assert torch.equal(total, (values * 4).round().int())
    mean = torch.empty(count)
    work.read(total, 1 / 12, mean)
    assert torch.equal(mean, (total.double() / 12).float())


def test_what_does_not_fit_is_zero_and_told_by_its_magnitude() -> None:
    total = torch.zeros(4, dtype=torch.int32)
    assert ALONE.add(torch.tensor([1.0, 3e38, -3e38, 2.0]), 2.0**29, total) == pytest.approx(3e38)
    assert total.tolist() == [2**29, 0, 0, 2**30]
