"""Sums over lanes that do not depend on their order: fixed point, added as integers.

Floating-point addition is not associative, so a sum over lanes would depend on which ranks carry them.
Here every value is scaled by a power of two, rounded to an integer and added as such. Each tensor has
one exponent e for the step, carried over from the last one: |value| <= 2**(e + margin) is promised, and
the scale is chosen so that all lanes' sum fits. The lanes' largest magnitudes are reduced too; if one
broke the promise every rank sees it, and the step is done again with exponents that hold.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

MARGIN = 2
"""Bits by which values may grow from one step to the next without the step being repeated."""

SLACK = 2
"""Bits by which values may stay below their exponent before it falls, by one a step."""

_LOWEST, _HIGHEST = -80, 90
LIMIT = 2.0**_HIGHEST
"""Magnitudes beyond this have no exponent; they count as not finite."""


@dataclass
class Exponents:
    """One exponent a tensor; equal on all ranks, as they come from reduced magnitudes alone."""

    values: list[int]
    margin: int = MARGIN

    @classmethod
    def unknown(cls, count: int, margin: int = MARGIN) -> Exponents:
        """Exponents so low that the first step shows the right ones, and is repeated."""
        return cls([_LOWEST - margin] * count, margin)

    def scale(self, number: int, bits: int) -> float:
        """What turns the promised values of a tensor into numbers of up to 2**bits; a power of two."""
        return power_of_two(self.values[number], bits, self.margin)

    def hold(self, peaks: Tensor) -> bool:
        """Whether every magnitude (float32 [count], finite) is within its promise."""
        limits = torch.tensor([2.0 ** (e + self.margin) for e in self.values])
        return bool((peaks <= limits).all())

    def follow(self, peaks: Tensor) -> None:
        """Fit the exponents to the magnitudes just seen: up at once, down late and by one a step.

        Falling slowly keeps a tensor whose gradient comes and goes from repeating steps.
        """
        for index, peak in enumerate(peaks.tolist()):
            needed = math.frexp(peak)[1] if peak > 0 else _LOWEST
            now = self.values[index]
            lowered = now - 1 if needed < now - SLACK else now
            self.values[index] = min(max(needed, lowered, _LOWEST), _HIGHEST)


def scale_bits(lanes: int, word_bits: int) -> int:
    """Bits that one lane's magnitude may use so that the sum of all lanes fits a signed word."""
    return word_bits - 2 - math.ceil(math.log2(lanes))


def power_of_two(exponent: int, bits: int, margin: int = MARGIN) -> float:
    """The scale 2**(bits - margin - exponent) that turns |value| <= 2**(exponent + margin) into <= 2**bits."""
    return math.ldexp(1.0, bits - margin - exponent)


class ExactVector:
    """Exact sums of a few small tensors of any float type at once, in int64: statistics and losses.

    ``sizes`` are the numbers of elements of the tensors; each has its own exponent.
    """

    def __init__(self, sizes: Sequence[int], lanes: int) -> None:
        self._sizes = torch.tensor(list(sizes), dtype=torch.int64)
        self._bits = scale_bits(lanes, 64)
        self.exponents = Exponents.unknown(len(sizes))
        self.total = torch.zeros(sum(sizes), dtype=torch.int64)
        self.peaks = torch.zeros(len(sizes))

    def clear(self) -> None:
        """Begin a new sum."""
        self.total.zero_()
        self.peaks.zero_()
        scales = [power_of_two(e, self._bits) for e in self.exponents.values]
        self._scales = torch.repeat_interleave(torch.tensor(scales, dtype=torch.float64), self._sizes)

    def add(self, tensors: Sequence[Tensor]) -> None:
        """Add one lane's tensors."""
        flat = torch.cat([tensor.detach().reshape(-1).double() for tensor in tensors])
        self.total += (flat * self._scales).round_().clamp_(-(2.0**62), 2.0**62).to(torch.int64)
        self.peaks = torch.maximum(self.peaks, self._peaks(flat))

    def peaks_of(self, tensors: Sequence[Tensor]) -> Tensor:
        """Largest magnitude of each of one lane's tensors, float32, without adding them."""
        return self._peaks(torch.cat([tensor.detach().reshape(-1).double() for tensor in tensors]))

    def _peaks(self, flat: Tensor) -> Tensor:
        return torch.stack([part.abs().max() for part in flat.split(self._sizes.tolist())]).float()

    def mean(self, lanes: int) -> list[Tensor]:
        """The means over lanes, float64, one 1-d tensor each, from the (reduced) total."""
        flat = self.total.double() / self._scales / lanes
        return list(flat.split(self._sizes.tolist()))
