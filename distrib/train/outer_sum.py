"""The mean over lanes of how far each lane moved, exactly, in a few large messages."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from distrib.comm.group import Group, Pending
from distrib.data.keyed import key_of
from distrib.train.exact import Exponents, scale_bits
from distrib.train.fixed_point import FixedPoint

_MESSAGE_BYTES = 25_000_000


@dataclass(frozen=True)
class LaneMove:
    """What a lane gives to the sum."""

    key: int
    """Of this lane in this round, for random numbers in rounding."""
    values: list[Tensor]
    """float32, 1-d contiguous, one a parameter."""

    def peaks(self) -> Tensor:
        """Largest magnitude of each, float32; NaN or infinite if one is no finite number."""
        return torch.stack([value.abs().max() if value.numel() else torch.zeros(()) for value in self.values])


class OuterSum:
    """Sums of parameters of the given sizes over all lanes; the same bits wherever the lanes are."""

    def __init__(self, group: Group, sizes: Sequence[int], lanes: int, words: FixedPoint) -> None:
        self._group, self._sizes, self._lanes, self._words = group, sizes, lanes, words
        self._bits = scale_bits(lanes, words.word_bits)

    def means(self, moves: Sequence[LaneMove], peaks: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Collective: (parameter's number, mean float32 1-d), in order, from this rank's lanes.

        ``peaks`` are the magnitudes over the lanes of all ranks, finite. As they are known before, every bit is
        used and nothing can overflow. All messages are on their way before the first is waited for.
        """
        exponents = Exponents.unknown(len(self._sizes), margin=0)
        exponents.follow(peaks)
        scales = [exponents.scale(number, self._bits) for number in range(len(self._sizes))]
        sent = [self._send(numbers, moves, scales) for numbers in self._messages()]
        for numbers, words, pending in sent:
            pending.wait()
            for number, part in zip(numbers, words, strict=True):
                mean = torch.empty(self._sizes[number])
                self._words.read(part, 1.0 / (scales[number] * self._lanes), mean)
                yield number, mean

    def _messages(self) -> Iterator[list[int]]:
        """Numbers of parameters that travel together."""
        together: list[int] = []
        num_bytes = 0
        for number, size in enumerate(self._sizes):
            together.append(number)
            num_bytes += 4 * self._words.num_words(size)
            if num_bytes >= _MESSAGE_BYTES or number == len(self._sizes) - 1:
                yield together
                together, num_bytes = [], 0

    def _send(self, numbers: list[int], moves: Sequence[LaneMove],
              scales: Sequence[float]) -> tuple[list[int], Sequence[Tensor], Pending]:
        lengths = [self._words.num_words(self._sizes[number]) for number in numbers]
        integers = torch.zeros(sum(lengths), dtype=torch.int32)
        parts = integers.split(lengths)
        for move in moves:
            for number, part in zip(numbers, parts, strict=True):
                self._words.add(move.values[number], scales[number], part, key_of(move.key, number))
        return numbers, parts, self._group.start_all_reduce(integers)
