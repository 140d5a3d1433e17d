from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distrib.train.exact import (
    BlockScratch,
    ExactVector,
    Exponents,
    add_quantised,
    dequantise,
    power_of_two,
    scale_bits,
)

LANES = 5


def exact_sum(lanes: list[torch.Tensor], exponent: int) -> torch.Tensor:
    scratch, total = BlockScratch(), torch.empty(lanes[0].numel(), dtype=torch.int32)
    scale = power_of_two(exponent, scale_bits(LANES, 32))
    for number, lane in enumerate(lanes):
        add_quantised(lane, scale, total, total if number else None, scratch)
    return total


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 70_000), st.integers(-60, 30))
def test_the_sum_of_lanes_has_no_order(seed: int, count: int, magnitude: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    lanes = [torch.randn(count, generator=generator) * 2.0**magnitude for _ in range(LANES)]
    exponent = math.frexp(max(float(lane.abs().max()) for lane in lanes))[1]
    sums = [exact_sum(list(order), exponent) for order in itertools.islice(itertools.permutations(lanes), 0, 120, 29)]
    for other in sums[1:]:
        assert torch.equal(sums[0], other)
    mean = torch.empty(count)
    dequantise(sums[0], 1 / (power_of_two(exponent, scale_bits(LANES, 32)) * LANES), mean)
    true = torch.stack(lanes).double().mean(0)
    # Rounding to the grid loses at most half a unit a lane; the result is then rounded to 24 bits.
    grid = 2.0 ** (exponent + 2 - scale_bits(LANES, 32))
    assert ((mean.double() - true).abs() <= 0.5 * grid + true.abs() * 2.0**-23).all()


@pytest.mark.parametrize("lanes", [1, 2, 3, 8, 9, 64, 1000])
def test_the_largest_promised_values_do_not_overflow(lanes: int) -> None:
    bits = scale_bits(lanes, 32)
    values, total = torch.full((10,), 4.0), torch.empty(10, dtype=torch.int32)  # exponent 0 promises up to 2**2
    scratch = BlockScratch()
    for number in range(lanes):
        add_quantised(values, power_of_two(0, bits), total, total if number else None, scratch)
    assert (total.long() == lanes * round(4.0 * power_of_two(0, bits))).all()


def test_magnitudes_are_exact_and_show_what_is_not_finite() -> None:
    values = torch.zeros(100_001)
    values[70_000] = -3.25
    scratch, total = BlockScratch(), torch.empty(100_001, dtype=torch.int32)
    assert float(add_quantised(values, 1.0, total, None, scratch)) == 3.25
    for bad in (math.nan, math.inf, -math.inf):
        values[100_000] = bad
        assert not math.isfinite(float(add_quantised(values, 1.0, total, None, scratch)))


def test_exponents_rise_at_once_and_fall_slowly() -> None:
    exponents = Exponents.unknown(2)
    peaks = torch.tensor([0.75, 3.0])
    assert not exponents.hold(peaks)
    exponents.follow(peaks)
    assert exponents.values == [0, 2]
    assert exponents.hold(torch.tensor([4.0, 16.0]))  # two bits of margin
    assert not exponents.hold(torch.tensor([4.1, 1.0]))
    exponents.follow(torch.tensor([1e-6, 100.0]))
    assert exponents.values == [-1, 7]  # far below: down by one
    exponents.follow(torch.tensor([0.2, 25.0]))
    assert exponents.values == [-1, 7]  # within the slack: unchanged
    for _ in range(300):
        exponents.follow(torch.zeros(2))
    assert all(math.isfinite(power_of_two(e, 30)) for e in exponents.values)
    assert torch.tensor(power_of_two(exponents.values[0], 30)).isfinite()


def test_statistics_sum_exactly_and_finely() -> None:
    generator = torch.Generator().manual_seed(0)
    lanes = [[torch.randn(50, generator=generator), torch.rand(7, generator=generator) * 1e-9, torch.tensor(2.5)]
             for _ in range(LANES)]
    results = []
    for order in (lanes, lanes[::-1]):
        vector = ExactVector([50, 7, 1], LANES)
        vector.exponents.follow(torch.tensor([8.0, 1e-9, 4.0]))
        vector.clear()
        for lane in order:
            vector.add(lane)
        results.append(vector.mean(LANES))
        assert vector.exponents.hold(vector.peaks)
    for first, second, parts in zip(results[0], results[1], zip(*lanes, strict=True), strict=True):
        assert torch.equal(first, second)
        true = torch.stack([part.double().reshape(-1) for part in parts]).mean(0)
        torch.testing.assert_close(first, true, rtol=1e-12, atol=1e-16)
