"""Two numbers a word: exact sums, rounding without a bias, random numbers of nothing but key and place."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from distrib.config import _MOST_LANES_16, TrainConfig
from distrib.data.keyed import key_of
from distrib.documents import validate
from distrib.errors import ConfigError
from distrib.train.exact import power_of_two, scale_bits
from distrib.train.packed import PackedFixedPoint

ALONE, TOGETHER = PackedFixedPoint(), PackedFixedPoint(threads=3)


def summed(lanes: list[Tensor], scale: float = 1.0, work: PackedFixedPoint = ALONE) -> Tensor:
    """Words of the sum; lane l's key is l's, whatever its place in the list."""
    total = torch.zeros(work.num_words(lanes[0].numel()), dtype=torch.int32)
    for number, lane in enumerate(lanes):
        work.add(lane, scale, total, key_of(number))
    return total


def read(total: Tensor, count: int, factor: float = 1.0) -> Tensor:
    values = torch.empty(count)
    ALONE.read(total, factor, values)
    return values


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.integers(-4000, 4000), min_size=7, max_size=7), min_size=1, max_size=8), st.integers(0, 7))
def test_integers_add_exactly_whatever_their_signs(rows: list[list[int]], count: int) -> None:
    lanes = [torch.tensor(row[:count], dtype=torch.float32) for row in rows]
    assert torch.equal(read(summed(lanes), count), torch.stack(lanes).sum(0))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 3000))
def test_the_sum_has_no_order_and_each_lane_is_off_by_less_than_a_unit(seed: int, count: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    lanes = [(torch.rand(count, generator=generator) - 0.5) * 4096 for _ in range(4)]
    parts = []
    for number, lane in enumerate(lanes):
        total = torch.zeros(ALONE.num_words(count), dtype=torch.int32)
        ALONE.add(lane, 1.0, total, key_of(number))
        assert ((read(total, count) - lane).abs() < 1).all()
        parts.append(total)
    for order in itertools.permutations(parts):
        assert torch.equal(torch.stack(order).sum(0, dtype=torch.int32), summed(lanes))


@pytest.mark.parametrize("lanes", [1, 2, 3, 8, 100, 256])
@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_the_largest_promised_values_fit(lanes: int, sign: float) -> None:
    scale = power_of_two(0, scale_bits(lanes, 16), ALONE.margin)
    values = torch.full((5,), sign * 2.0**ALONE.margin * (1 - 2.0**-20))
    got = read(summed([values] * lanes, scale), 5, 1 / scale / lanes)
    assert ((got - values).abs() < 1 / scale).all()


def test_the_most_lanes_are_those_that_leave_six_bits() -> None:
    assert scale_bits(_MOST_LANES_16, 16) == 6
    assert scale_bits(_MOST_LANES_16 + 1, 16) < 6
    wish = {"reduction": "exact16", "lanes": _MOST_LANES_16, "global_batch": _MOST_LANES_16}
    TrainConfig.model_validate(wish)
    more = {**wish, "lanes": 2 * _MOST_LANES_16, "global_batch": 2 * _MOST_LANES_16}
    with pytest.raises(ConfigError, match="fewer than 6 bits would be left"):
        validate(TrainConfig, more, "here")
    TrainConfig.model_validate({**more, "reduction": "exact"})


@pytest.mark.parametrize("value", [0.0, 0.001, 0.3, 0.5, 0.999, 7.25, -0.001, -0.3, -0.5, -1000.7])
def test_rounding_has_no_bias(value: float) -> None:
    count = 1_000_000
    got = read(summed([torch.full((count,), value)]), count).double()
    fraction = value % 1
    deviation = (fraction * (1 - fraction) / count) ** 0.5
    for half in got.chunk(2):  # both halves of the words
        assert abs(float(half.mean()) - torch.tensor(value).double()) <= 5 * deviation * 2**0.5 + 2.0**-17
    assert float(got.var()) == pytest.approx(fraction * (1 - fraction), abs=2e-3)


def test_draws_of_neighbours_halves_and_keys_are_unrelated() -> None:
    count = 1 << 20
    half = torch.full((count,), 0.5)
    draws = []
    for key in (key_of(part, 7) for part in range(12)):
        total = torch.zeros(count // 2, dtype=torch.int32)
        ALONE.add(half, 1.0, total, key)
        draws.append(read(total, count) * 2 - 1)
    for one, other in itertools.combinations(draws, 2):
        assert abs(float((one * other).mean())) < 5 * count**-0.5
    for shift in (1, 2, 3, 4, 8, 64, 1024, count // 2):
        assert abs(float((draws[0] * draws[0].roll(shift)).mean())) < 5 * count**-0.5


@pytest.mark.parametrize("count", [0, 1, 2, 7, (1 << 19) + 1, 700_003, 1_400_000])
def test_threads_change_nothing(count: int) -> None:
    values = torch.randn(count, generator=torch.Generator().manual_seed(count)) * 1000
    lanes = [values, -values / 3]
    assert torch.equal(summed(lanes), summed(lanes, work=TOGETHER))
    total, read_together = summed(lanes), torch.empty(count)
    TOGETHER.read(total, 1 / 3, read_together)
    assert torch.equal(read(total, count, 1 / 3), read_together)
    assert torch.equal(read_together, (read(total, count).double() / 3).float())


def test_what_does_not_fit_is_zero_and_told_by_its_magnitude() -> None:
    total = torch.zeros(2, dtype=torch.int32)
    assert ALONE.add(torch.tensor([1.0, 3e38, -3e38, 2.0]), 2.0**10, total) == pytest.approx(3e38)
    assert read(total, 4).tolist() == [1024, 0, 0, 2048]
