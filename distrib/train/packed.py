"""Several fixed-point numbers in an int32 word, which one integer addition adds all.

A word is ``sum over fields f of (number f << width * f)`` in two's complement: sums of words are words of sums as
long as every sum fits its width. With so few bits, rounding to the nearest would silence every value below half a
unit, step after step. So rounding is stochastic: down to floor(x + d) with d even in (0, 1), x in the mean. d is a
hash of a key and of the value's place, so that it does not depend on who computes it, and is the same when a step
is repeated.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from distrib.train.fixed_point import Chunks, FixedPoint, largest

_Floats = NDArray[np.float32]


class _Kernels(NamedTuple):
    """Compiled loops over contiguous arrays; ``values`` are one field's of the words in ``total``."""

    add: Callable[..., int]
    """(values float32, scale float32, field, first word's number, keys uint32 x2, total int32) -> bits of the peak."""
    read: Callable[..., None]
    """(total int32, factor float64, field, values float32)."""


@cache
def _kernels(width: int) -> _Kernels:
    import numba

    sign, mask, middle = np.uint32(0x7FFFFFFF), np.uint32((1 << width) - 1), np.int32(1 << (width - 1))
    # Half a field in every field: no field of word + halves is negative, so that none borrows from the next.
    halves = np.uint32(sum(1 << (width * field + width - 1) for field in range(32 // width)))
    draw, half_draw = np.float32(2.0**-width), np.float32(2.0 ** -(width + 1))
    # As for whole words: a value beyond this breaks its exponent's promise, and what is added is thrown away.
    fits = np.float32(2.0 ** (width - 2))
    untyped: Any = numba.njit

    @untyped("uint32(uint32, uint32, uint32)")  # type: ignore[untyped-decorator]
    def mixed(number: Any, key_0: Any, key_1: Any) -> Any:
        # Wellons' lowbias32, keyed before and in its middle so that two keys' streams are no shifts of each other.
        h = np.uint32(number ^ key_0)
        h = np.uint32(np.uint32(h ^ (h >> np.uint32(16))) * np.uint32(0x7FEB352D))
        h = np.uint32(np.uint32(h ^ (h >> np.uint32(15))) + key_1)
        h = np.uint32(h * np.uint32(0x846CA68B))
        return np.uint32(h ^ (h >> np.uint32(16)))

    def add(values: Any, scale: Any, field: Any, first: Any, key_0: Any, key_1: Any, total: Any) -> Any:
        bits, peak, shift = values.view(np.uint32), np.uint32(0), np.uint32(width * field)
        for i in range(values.size):
            random = np.uint32(mixed(np.uint32(first + np.uint32(i)), key_0, key_1) >> shift) & mask
            scaled = values[i] * scale
            rounded = np.int32(np.floor(scaled + (np.float32(np.int32(random)) * draw + half_draw)))
            total[i] += np.int32((rounded if abs(scaled) <= fits else np.int32(0)) << shift)
            peak = max(peak, bits[i] & sign)
        return peak

    def read(total: Any, factor: Any, field: Any, values: Any) -> None:
        words, shift = total.view(np.uint32), np.uint32(width * field)
        for i in range(values.size):
            lifted = np.uint32(np.uint32(words[i] + halves) >> shift) & mask
            values[i] = np.float32(np.float64(np.int32(lifted) - middle) * factor)

    def compiled(signature: str, function: Callable[..., Any]) -> Callable[..., Any]:
        kernel: Callable[..., Any] = numba.njit(signature, nogil=True)(function)
        return kernel

    return _Kernels(compiled("uint32(float32[::1], float32, uint32, uint32, uint32, uint32, int32[::1])", add),
                    compiled("void(int32[::1], float64, uint32, float32[::1])", read))


class PackedFixedPoint(FixedPoint):
    """``fields`` values a word, of 32 // fields bits each.

    A tensor is cut into as many runs of equal length (the last may be shorter): a word holds one value of each.
    """

    margin = 1  # bits are scarce; measured, see docs/decisions/0004-less-to-send.md

    def __init__(self, threads: int = 1, fields: int = 2) -> None:
        self._fields, self.word_bits = fields, 32 // fields
        self._packing = _kernels(self.word_bits)
        self._chunks = Chunks(threads)

    def num_words(self, count: int) -> int:
        return -(-count // self._fields)

    def add(self, values: Tensor, scale: float, total: Tensor, key: int = 0) -> float:
        """Like `FixedPoint.add`, rounding stochastically; ``total`` holds ``num_words`` words.

        ``key``, one of `key_of`, must be another for every tensor and lane that are added.
        """
        words = total.numpy()
        factor, keys = np.float32(scale), (np.uint32(key & 0xFFFFFFFF), np.uint32(key >> 32))

        def part(field: int, run: _Floats, first: int) -> int:
            return self._packing.add(run, factor, field, first, *keys, words[first:first + run.size])

        return largest(self._over_fields(values.detach().numpy(), part))

    def read(self, total: Tensor, factor: float, out: Tensor) -> None:
        """Like `FixedPoint.read`, from ``num_words`` words."""
        source = total.numpy()
        self._over_fields(out.numpy(), lambda field, run, first: self._packing.read(
            source[first:first + run.size], factor, field, run))

    def _over_fields(self, array: _Floats, work: Callable[[int, _Floats, int], Any]) -> list[Any]:
        """``work`` on each field and a part of its values, with the number of the part's first word."""
        words = self.num_words(array.size)
        runs = [array[words * field:words * (field + 1)] for field in range(self._fields)]

        def part(where: slice) -> list[Any]:
            return [work(field, run[where], where.start) for field, run in enumerate(runs)]

        return [result for results in self._chunks.map(part, words) for result in results]
