"""Two numbers a word: exact sums, rounding without a bias, random numbers of nothing but key and place."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from distrib.config import MOST_LANES, TrainConfig
from distrib.data.keyed import key_of
from distrib.documents import validate
from distrib.errors import ConfigError
from distrib.train.exact import power_of_two, scale_bits
from distrib.train.packed import PackedFixedPoint
from distrib.train.reductions import WORDS

FIELDS = pytest.mark.parametrize("fields", [2, 3])
ALONE, TOGETHER = ({fields: PackedFixedPoint(threads, fields) for fields in (2, 3)} for threads in (1, 3))


def summed(work: PackedFixedPoint, lanes: list[Tensor], scale: float = 1.0) -> Tensor:
    """Words of the sum; lane l's key is l's, whatever its place in the list."""
    total = torch.zeros(work.num_words(lanes[0].numel()), dtype=torch.int32)
    for number, lane in enumerate(lanes):
        work.add(lane, scale, total, key_of(number))
    return total


def read(work: PackedFixedPoint, total: Tensor, count: int, factor: float = 1.0) -> Tensor:
    values = torch.empty(count)
    work.read(total, factor, values)
    return values


@FIELDS
@settings(max_examples=30)
@given(rows=st.lists(st.lists(st.integers(-4000, 4000), min_size=11, max_size=11), min_size=1, max_size=8),
       count=st.integers(0, 11))
def test_integers_add_exactly_whatever_their_signs(fields: int, rows: list[list[int]], count: int) -> None:
    work, most = ALONE[fields], {2: 4000, 3: 63}[fields]  # eight of them fit a field
    lanes = [torch.tensor(row[:count], dtype=torch.float32).fmod(most + 1) for row in rows]
    assert torch.equal(read(work, summed(work, lanes), count), torch.stack(lanes).sum(0))


@FIELDS
@settings(max_examples=20)
@given(seed=st.integers(0, 2**31), count=st.integers(1, 3000))
def test_the_sum_has_no_order_and_each_lane_is_off_by_less_than_a_unit(fields: int, seed: int, count: int) -> None:
    work, generator = ALONE[fields], torch.Generator().manual_seed(seed)
    lanes = [(torch.rand(count, generator=generator) - 0.5) * {2: 4096, 3: 250}[fields] for _ in range(4)]
    parts = []
    for number, lane in enumerate(lanes):
        total = torch.zeros(work.num_words(count), dtype=torch.int32)
        work.add(lane, 1.0, total, key_of(number))
        assert ((read(work, total, count) - lane).abs() < 1).all()
        parts.append(total)
    for order in itertools.permutations(parts):
        assert torch.equal(torch.stack(order).sum(0, dtype=torch.int32), summed(work, lanes))


@pytest.mark.parametrize(("fields", "lanes"), [(2, 1), (2, 3), (2, 8), (2, 100), (2, 256),
                                               (3, 1), (3, 3), (3, 8), (3, 16)])
@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_the_largest_promised_values_fit(fields: int, lanes: int, sign: float) -> None:
    work = ALONE[fields]
    scale = power_of_two(0, scale_bits(lanes, work.word_bits), work.margin)
    values = torch.full((7,), sign * 2.0**work.margin * (1 - 2.0**-20))
    got = read(work, summed(work, [values] * lanes, scale), 7, 1 / scale / lanes)
    assert ((got - values).abs() < 1 / scale).all()


@pytest.mark.parametrize("reduction", MOST_LANES)
def test_the_most_lanes_are_those_that_leave_enough_bits(reduction: str) -> None:
    (lanes, bits), width = MOST_LANES[reduction], WORDS[reduction](1).word_bits
    assert scale_bits(lanes, width) == bits
    assert scale_bits(lanes + 1, width) < bits
    wish = {"reduction": reduction, "lanes": lanes, "global_batch": lanes}
    TrainConfig.model_validate(wish)
    more = {**wish, "lanes": 2 * lanes, "global_batch": 2 * lanes}
    with pytest.raises(ConfigError, match=f"fewer than {bits} bits would be left"):
        validate(TrainConfig, more, "here")
    TrainConfig.model_validate({**more, "reduction": "exact"})


@FIELDS
@pytest.mark.parametrize("value", [0.0, 0.001, 0.3, 0.5, 0.999, 7.25, -0.001, -0.3, -0.5, -1000.7])
def test_rounding_has_no_bias(fields: int, value: float) -> None:
    count, work, value = 1_200_000, ALONE[fields], math.fmod(value, {2: 2**14, 3: 2**8}[fields])
    got = read(work, summed(work, [torch.full((count,), value)]), count).double()
    fraction = value % 1
    deviation = (fraction * (1 - fraction) / count) ** 0.5
    for run in got.chunk(fields):  # each field of the words
        even = 2.0 ** -(work.word_bits + 1)  # draws are that far from each other, twice
        assert abs(float(run.mean()) - torch.tensor(value).double()) <= 5 * deviation * fields**0.5 + even
    assert float(got.var()) == pytest.approx(fraction * (1 - fraction), abs=2e-3)


@FIELDS
def test_draws_of_neighbours_fields_and_keys_are_unrelated(fields: int) -> None:
    count, work = fields << 19, ALONE[fields]
    half = torch.full((count,), 0.5)
    draws = []
    for key in (key_of(part, 7) for part in range(12)):
        total = torch.zeros(count // fields, dtype=torch.int32)
        work.add(half, 1.0, total, key)
        draws.append(read(work, total, count) * 2 - 1)
    for one, other in itertools.combinations(draws, 2):
        assert abs(float((one * other).mean())) < 5 * count**-0.5
    for shift in (1, 2, 3, 4, 8, 64, 1024, count // fields):
        assert abs(float((draws[0] * draws[0].roll(shift)).mean())) < 5 * count**-0.5


@FIELDS
@pytest.mark.parametrize("count", [0, 1, 2, 7, (1 << 19) + 1, 700_003, 1_400_000])
def test_threads_change_nothing(fields: int, count: int) -> None:
    alone, together = ALONE[fields], TOGETHER[fields]
    values = torch.randn(count, generator=torch.Generator().manual_seed(count)) * {2: 1000, 3: 30}[fields]
    lanes = [values, -values / 3]
    total, read_together = summed(alone, lanes), torch.empty(count)
    assert torch.equal(total, summed(together, lanes))
    together.read(total, 1 / 3, read_together)
    assert torch.equal(read(alone, total, count, 1 / 3), read_together)
    assert torch.equal(read_together, (read(alone, total, count).double() / 3).float())


@FIELDS
def test_what_does_not_fit_is_zero_and_told_by_its_magnitude(fields: int) -> None:
    work, total, unit = ALONE[fields], torch.zeros(2, dtype=torch.int32), {2: 1024, 3: 64}[fields]
    assert work.add(torch.tensor([1.0, 3e38, -3e38, 2.0]), float(unit), total) == pytest.approx(3e38)
    assert read(work, total, 4).tolist() == [unit, 0, 0, 2 * unit]
