"""Which samples a lane reads at which step: pure functions of (shard sizes, labels, seed, step, lane).

A *lane* is an endless sequence of samples; step t takes its next ``lane_batch`` ones. Nothing here
knows of ranks, so no order can depend on them.

**Shuffled order.** With N samples and L lanes, lane l ends its part of epoch e after ``(e*N + l) // L``
samples. These ends sum to exactly e*N over the lanes (Hermite's identity), so that every sample is read
once an epoch, none is padded, dropped or repeated, and lanes differ by at most one sample. Within an
epoch the shards are put in random order, the ring of their samples is cut at a random place, and each
lane gets one contiguous arc of it: a lane reads a shard of its own, front to back, not all of them. A
lane's samples are then mixed inside windows of ``shuffle_shards`` consecutive shards.

Bound, tested: while a lane reads one window it touches at most ``shuffle_shards`` shards, and a batch
spans at most two windows unless it is larger than a window; over an epoch a lane comes back to no shard
that it has left, except one cut by its ends.

**Balanced order.** Positions of the global sequence come in blocks of one sample of every class, in
random order; each class runs through its own samples in shuffled order, over and over.

**Mixed order.** A stated part r of the positions draws from the new samples, the rest from the old ones: position p is
new where floor((p + 1) r) is above floor(p r), so any run of n positions, a lane's batch or the whole batch, has n r
new ones to within one. Each part runs through its own samples, over and over, shuffled or balanced.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from itertools import pairwise
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from distrib.data.keyed import key_of, permutation

Indices = NDArray[np.int64]

# The first part of a key says what it is for, so that no two purposes share random numbers.
_SHARDS, _CUT, _WINDOW, _BLOCK, _CLASS, _PART = range(1, 7)


@dataclass(frozen=True)
class LaneBatch:
    """What one lane reads in one step: parallel arrays of shape [lane_batch]."""

    epochs: Indices
    """Pass over the data to which each sample belongs; with it a sample's augmentation is keyed."""
    samples: Indices
    """Numbers of the samples in their split."""


class Order(Protocol):
    """A deterministic assignment of samples to (step, lane)."""

    def batch(self, step: int, lane: int) -> LaneBatch:
        """The samples of one lane in one step."""
        ...


def num_steps(num_samples: int, epochs: int, global_batch: int) -> int:
    """Steps that cover ``epochs`` passes; the last one may run on into the next pass."""
    return -(-num_samples * epochs // global_batch)


def carried_lanes(rank: int, size: int, lanes: int) -> range:
    """The lanes that a rank carries: contiguous, and as even as can be."""
    return range(rank * lanes // size, (rank + 1) * lanes // size)


def reading_plan(lanes: Sequence[int], first_step: int, last_step: int,
                 local_steps: int) -> Iterator[list[tuple[int, int]]]:
    """What a rank takes at a time: (step, lane) pairs, for steps ``first_step`` .. ``last_step`` - 1.

    With ``local_steps`` = 1 all its lanes of a step; with more, one lane's step: within each round of up to
    ``local_steps`` steps (rounds end at their multiples) a lane's steps come before the next lane's.
    """
    if local_steps == 1:
        yield from ([(step, lane) for lane in lanes] for step in range(first_step, last_step))
        return
    while first_step < last_step:
        end = min((first_step // local_steps + 1) * local_steps, last_step)
        yield from ([(step, lane)] for lane in lanes for step in range(first_step, end))
        first_step = end


class ShuffledOrder:
    """Every sample once an epoch."""

    def __init__(self, shard_sizes: Sequence[int], *, lanes: int, lane_batch: int, seed: int,
                 shuffle_shards: int) -> None:
        self._sizes = np.asarray(shard_sizes, dtype=np.int64)
        self._lanes, self._lane_batch = lanes, lane_batch
        self._seed, self._window = seed, shuffle_shards
        self._total = int(self._sizes.sum())
        # A lane is inside one epoch at a time, and prefetching looks at most one further.
        self._arc = lru_cache(maxsize=2 * lanes)(self._compute_arc)

    def end(self, epoch: int, lane: int) -> int:
        """Samples that a lane has read when its part of all epochs before ``epoch`` is over."""
        return (epoch * self._total + lane) // self._lanes

    def batch(self, step: int, lane: int) -> LaneBatch:
        start, stop = step * self._lane_batch, (step + 1) * self._lane_batch
        epoch = start * self._lanes // self._total
        while self.end(epoch, lane) > start:
            epoch -= 1
        epochs: list[Indices] = []
        samples: list[Indices] = []
        while start < stop:
            begin, end = self.end(epoch, lane), self.end(epoch + 1, lane)
            if begin <= start < end:
                piece = self._arc(epoch, lane)[start - begin : min(stop, end) - begin]
                samples.append(piece)
                epochs.append(np.full(len(piece), epoch, dtype=np.int64))
                start += len(piece)
            epoch += 1
        return LaneBatch(np.concatenate(epochs), np.concatenate(samples))

    def _compute_arc(self, epoch: int, lane: int) -> Indices:
        """A lane's samples of one epoch, in reading order."""
        quotas = [self.end(epoch + 1, k) - self.end(epoch, k) for k in range(lane + 1)]
        first = sum(quotas[:lane])
        cut = key_of(_CUT, self._seed, epoch) % self._total
        shards = permutation(key_of(_SHARDS, self._seed, epoch), len(self._sizes))
        pieces = arc_pieces(self._sizes, shards, (first + cut) % self._total, quotas[lane])
        return mix_windows(pieces, self._window, key_of(_WINDOW, self._seed, epoch, lane))


class BalancedOrder:
    """Every class equally often; a class with few samples repeats them, each time augmented anew.

    Samples whose label is below 0 are left out.
    """

    def __init__(self, shard_sizes: Sequence[int], labels: Indices, *, num_classes: int, lanes: int, lane_batch: int,
                 seed: int, shuffle_shards: int) -> None:
        self._lanes, self._lane_batch = lanes, lane_batch
        self._num_classes, self._seed, self._window = num_classes, seed, shuffle_shards
        bounds = np.cumsum([0, *shard_sizes])
        self._by_shard: list[list[Indices]] = []
        for label in range(num_classes):
            members = np.flatnonzero(labels == label).astype(np.int64)
            if not len(members):
                raise ValueError(f"class {label} has no sample")
            cuts = np.searchsorted(members, bounds)
            self._by_shard.append([members[a:b] for a, b in pairwise(cuts) if b > a])
        self._class_sizes = [sum(map(len, shards)) for shards in self._by_shard]
        self._pass = lru_cache(maxsize=2 * num_classes)(self._compute_pass)
        self._block = lru_cache(maxsize=4)(self._compute_block)

    def batch(self, step: int, lane: int) -> LaneBatch:
        return self.draw(lane_positions(step, lane, self._lanes, self._lane_batch))

    def draw(self, positions: Indices) -> LaneBatch:
        """What stands at these positions of the global sequence."""
        epochs, samples = np.empty_like(positions), np.empty_like(positions)
        for place, position in enumerate(positions.tolist()):
            block, inside = divmod(position, self._num_classes)
            label = self._block(block)[inside]
            # Each block holds every class once, so the block's number counts the class's samples.
            epoch, index = divmod(block, self._class_sizes[label])
            epochs[place], samples[place] = epoch, self._pass(label, epoch)[index]
        return LaneBatch(epochs, samples)

    def _compute_block(self, block: int) -> list[int]:
        return list(map(int, permutation(key_of(_BLOCK, self._seed, block), self._num_classes)))

    def _compute_pass(self, label: int, epoch: int) -> Indices:
        """One shuffled pass over a class's samples, shard-sequential like the other order."""
        shards = self._by_shard[label]
        key = key_of(_CLASS, self._seed, label, epoch)
        pieces = [shards[i] for i in permutation(key, len(shards))]
        return mix_windows(pieces, self._window, key_of(key, 1))


class MixedOrder:
    """Old and new samples in a stated ratio; the rarer part repeats its samples, each time augmented anew."""

    def __init__(self, shard_sizes: Sequence[int], labels: Indices, is_new: NDArray[np.bool_], new_ratio: float, *,
                 balanced: bool, lanes: int, lane_batch: int, seed: int, shuffle_shards: int) -> None:
        """``new_ratio``: the part of the draws from the samples ``is_new``, to 1/10,000. ``balanced``: within each
        part, every class that it has equally often."""
        self._lanes, self._lane_batch = lanes, lane_batch
        self._ratio = Fraction(new_ratio).limit_denominator(10_000)
        self._parts = []
        for number, chosen in enumerate((~is_new, is_new)):
            present, place = np.unique(labels[chosen], return_inverse=True)
            classes = np.full(len(labels), -1, dtype=np.int64)
            classes[chosen] = place if balanced else 0
            self._parts.append(BalancedOrder(
                shard_sizes, classes, num_classes=len(present) if balanced else 1, lanes=lanes, lane_batch=lane_batch,
                seed=key_of(_PART, seed, number), shuffle_shards=shuffle_shards))

    def batch(self, step: int, lane: int) -> LaneBatch:
        positions = lane_positions(step, lane, self._lanes, self._lane_batch)
        new_before = positions * self._ratio.numerator // self._ratio.denominator
        is_new = (positions + 1) * self._ratio.numerator // self._ratio.denominator > new_before
        epochs, samples = np.empty_like(positions), np.empty_like(positions)
        for part, chosen, own in zip(self._parts, (~is_new, is_new), (positions - new_before, new_before), strict=True):
            drawn = part.draw(own[chosen])
            epochs[chosen], samples[chosen] = drawn.epochs, drawn.samples
        return LaneBatch(epochs, samples)


def lane_positions(step: int, lane: int, lanes: int, lane_batch: int) -> Indices:
    """A lane's places in a sequence over all steps and lanes, shape [lane_batch]."""
    start = (step * lanes + lane) * lane_batch
    return np.arange(start, start + lane_batch, dtype=np.int64)


def arc_pieces(sizes: Indices, shards: Indices, start: int, count: int) -> list[Indices]:
    """Samples ``start .. start+count`` of the ring made of ``shards`` in order, one array a shard."""
    first_sample = np.concatenate([[0], np.cumsum(sizes)])
    bounds = np.concatenate([[0], np.cumsum(sizes[shards])])
    total = int(bounds[-1])
    pieces: list[Indices] = []
    while count > 0:
        place = int(np.searchsorted(bounds, start, side="right")) - 1
        take = min(count, int(bounds[place + 1]) - start)
        begin = int(first_sample[shards[place]]) + start - int(bounds[place])
        pieces.append(np.arange(begin, begin + take, dtype=np.int64))
        start, count = (start + take) % total, count - take
    return pieces


def mix_windows(pieces: Sequence[Indices], window: int, key: int) -> Indices:
    """Concatenate pieces, shuffling inside each run of ``window`` pieces."""
    mixed: list[Indices] = []
    for number, begin in enumerate(range(0, len(pieces), window)):
        inside = np.concatenate(pieces[begin : begin + window])
        mixed.append(inside[permutation(key_of(key, number), len(inside))])
    return np.concatenate(mixed) if mixed else np.empty(0, dtype=np.int64)
