from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distrib.data.keyed import key_of, permutation, uniforms, words
from distrib.data.order import BalancedOrder, MixedOrder, Order, ShuffledOrder, carried_lanes, num_steps, reading_plan

sizes = st.lists(st.integers(1, 30), min_size=1, max_size=12)


@st.composite
def shuffled(draw: st.DrawFn) -> tuple[ShuffledOrder, list[int], int, int]:
    shards, lanes, lane_batch = draw(sizes), draw(st.integers(1, 9)), draw(st.integers(1, 7))
    seed, window = draw(st.integers(0, 2**63 - 1)), draw(st.integers(1, 5))
    order = ShuffledOrder(shards, lanes=lanes, lane_batch=lane_batch, seed=seed, shuffle_shards=window)
    return order, shards, lanes, lane_batch


def read(order: Order, lanes: int, steps: int) -> list[tuple[int, int]]:
    """(epoch, sample) of everything that all lanes read in ``steps`` steps."""
    pairs: list[tuple[int, int]] = []
    for step in range(steps):
        for lane in range(lanes):
            batch = order.batch(step, lane)
            pairs += zip(batch.epochs.tolist(), batch.samples.tolist(), strict=True)
    return pairs


@settings(max_examples=60)
@given(shuffled(), st.integers(1, 3))
def test_every_sample_is_read_exactly_once_an_epoch(made: tuple[ShuffledOrder, list[int], int, int],
                                                    epochs: int) -> None:
    order, shards, lanes, lane_batch = made
    total = sum(shards)
    pairs = Counter(read(order, lanes, num_steps(total, epochs, lanes * lane_batch)))
    assert max(pairs.values()) == 1
    for epoch in range(epochs):
        assert {sample for e, sample in pairs if e == epoch} == set(range(total))
    # The last step runs on into the next epoch by less than a batch, and nothing is padded.
    assert sum(1 for e, _ in pairs if e >= epochs) < lanes * lane_batch
    assert sum(pairs.values()) == num_steps(total, epochs, lanes * lane_batch) * lanes * lane_batch


@settings(max_examples=60)
@given(shuffled(), st.integers(0, 20))
def test_a_batch_is_a_function_of_step_and_lane_alone(made: tuple[ShuffledOrder, list[int], int, int],
                                                      step: int) -> None:
    order, _, lanes, _ = made
    fresh = [order.batch(step, lane).samples.tolist() for lane in range(lanes)]
    for other in range(step + 3):  # reading other steps first, in any order, changes nothing
        order.batch(other, other % lanes)
    assert fresh == [order.batch(step, lane).samples.tolist() for lane in range(lanes)]


@settings(max_examples=60)
@given(shards=sizes, lanes=st.integers(1, 6), window=st.integers(1, 5), seed=st.integers(0, 1000))
def test_a_lane_reads_few_shards_at_a_time_and_returns_to_none(shards: list[int], lanes: int, window: int,
                                                              seed: int) -> None:
    order = ShuffledOrder(shards, lanes=lanes, lane_batch=1, seed=seed, shuffle_shards=window)
    starts = np.cumsum([0, *shards])
    for lane in range(lanes):
        length = order.end(1, lane)
        read_shards = [int(np.searchsorted(starts, order.batch(i, lane).samples[0], side="right")) - 1
                       for i in range(length)]
        # Samples of the shards that a lane has, in reading order: a shard is finished before the window is left.
        first = {shard: read_shards.index(shard) for shard in read_shards}
        last = {shard: length - 1 - read_shards[::-1].index(shard) for shard in read_shards}
        for position in range(length):
            open_now = [shard for shard in first if first[shard] <= position <= last[shard]]
            # One shard may hold both ends of the lane's arc and then counts for its whole length.
            assert len(open_now) <= window + 1


def test_lanes_carry_everything_once_for_any_world_size() -> None:
    for lanes in range(1, 20):
        for size in range(1, lanes + 1):
            carried = [lane for rank in range(size) for lane in carried_lanes(rank, size, lanes)]
            assert carried == list(range(lanes))
            counts = [len(carried_lanes(rank, size, lanes)) for rank in range(size)]
            assert min(counts) >= 1
            assert max(counts) - min(counts) <= 1


def test_epochs_and_seeds_differ() -> None:
    def first_epochs(seed: int) -> list[list[int]]:
        order = ShuffledOrder([50, 50], lanes=2, lane_batch=10, seed=seed, shuffle_shards=8)
        read_by_epoch: list[list[int]] = [[], []]
        for epoch, sample in read(order, 2, 10):
            read_by_epoch[epoch].append(sample)
        return read_by_epoch

    one, two = first_epochs(0), first_epochs(1)
    assert one[0] != one[1]
    assert one[0] != two[0]
    assert one == first_epochs(0)


@st.composite
def balanced(draw: st.DrawFn) -> tuple[BalancedOrder, list[int], int, int]:
    counts = draw(st.lists(st.integers(1, 20), min_size=2, max_size=4))
    labels = [label for label, count in enumerate(counts) for _ in range(count)]
    mixed = [labels[i] for i in permutation(draw(st.integers(0, 99)), len(labels))]
    cut = draw(st.integers(1, len(mixed) - 1))
    lanes, lane_batch = draw(st.integers(1, 5)), draw(st.integers(1, 6))
    order = BalancedOrder([cut, len(mixed) - cut], np.array(mixed), num_classes=len(counts), lanes=lanes,
                          lane_batch=lane_batch, seed=draw(st.integers(0, 99)), shuffle_shards=2)
    return order, mixed, lanes, lane_batch


@settings(max_examples=60)
@given(balanced(), st.integers(1, 12))
def test_balanced_order_draws_classes_equally_and_each_class_evenly(made: tuple[BalancedOrder, list[int], int, int],
                                                                    steps: int) -> None:
    order, labels, lanes, _ = made
    pairs = read(order, lanes, steps)
    by_class = Counter(labels[sample] for _, sample in pairs)
    classes = max(labels) + 1
    drawn = [by_class[label] for label in range(classes)]
    assert max(drawn) - min(drawn) <= 1
    assert max(Counter(pairs).values()) == 1  # within a pass over its class, a sample comes once
    for label in range(classes):
        seen = Counter(sample for _, sample in pairs if labels[sample] == label)
        times = [seen[sample] for sample in range(len(labels)) if labels[sample] == label]
        assert max(times) - min(times) <= 1


def test_random_words_never_change() -> None:
    # The published finaliser of SplitMix64 on a counter: the first outputs for seed 0 are well known.
    assert [int(word) for word in words(0, 3)] == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert key_of(1, 2) != key_of(2, 1)
    assert sorted(permutation(5, 100).tolist()) == list(range(100))
    values = uniforms(7, 100_000)
    assert values.min() >= 0
    assert values.max() < 1
    assert values.mean() == pytest.approx(0.5, abs=0.005)


@given(st.integers(1, 5), st.integers(0, 20), st.integers(0, 20), st.integers(1, 7))
def test_a_reading_plan_has_every_step_of_every_lane_once_and_lanes_whole_in_their_rounds(
        lanes: int, first: int, count: int, local_steps: int) -> None:
    taken = list(reading_plan(range(lanes), first, first + count, local_steps))
    pairs = [pair for together in taken for pair in together]
    assert sorted(pairs) == [(step, lane) for step in range(first, first + count) for lane in range(lanes)]
    if local_steps == 1:
        assert pairs == sorted(pairs)
        assert {len(together) for together in taken} <= {lanes}
    else:
        assert pairs == sorted(pairs, key=lambda pair: (pair[0] // local_steps, pair[1], pair[0]))
        assert {len(together) for together in taken} <= {1}


@settings(max_examples=40)
@given(st.integers(1, 30), st.integers(1, 30), st.floats(0.01, 0.99), st.integers(1, 5), st.integers(1, 7),
       st.booleans(), st.integers(0, 99))
def test_old_and_new_are_mixed_as_stated_and_each_is_read_evenly(
        num_old: int, num_new: int, ratio: float, lanes: int, lane_batch: int, balanced: bool, seed: int) -> None:
    total = num_old + num_new
    is_new = np.arange(total) >= num_old
    labels = np.arange(total) % 3

    def made() -> MixedOrder:
        return MixedOrder([num_old, num_new], labels, is_new, ratio, balanced=balanced, lanes=lanes,
                          lane_batch=lane_batch, seed=seed, shuffle_shards=2)

    order, steps = made(), 12
    pairs = read(order, lanes, steps)
    chosen = is_new[[sample for _, sample in pairs]]
    for size in (lane_batch, lanes * lane_batch):  # of every lane's batch, and of every step's
        counts = chosen.reshape(-1, size).sum(axis=1)
        assert (abs(counts - ratio * size) < 1 + 1e-3 * size).all()
    for part in (True, False):
        times = Counter(pair for pair, new in zip(pairs, chosen, strict=True) if new == part)
        assert not times or max(times.values()) == 1  # a pass holds a sample once
        if not balanced:
            seen = Counter(sample for _, sample in times)
            least = min(seen[int(i)] for i in np.flatnonzero(is_new == part))
            assert max(seen.values(), default=0) - least <= 1
    fresh = made()
    assert [fresh.batch(7, lane).samples.tolist() for lane in range(lanes)] == \
        [order.batch(7, lane).samples.tolist() for lane in range(lanes)]
