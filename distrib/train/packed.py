"""Two 16-bit fixed-point numbers in an int32 word, which one integer addition adds both.

A word is ``(high << 16) + low`` in two's complement: sums of words are words of sums as long as both sums
fit 16 bits. With so few bits, rounding to the nearest would silence every value below half a unit, step after
step. So rounding is stochastic: down to floor(x + d) with d even in (0, 1), x in the mean. d is a hash of a
key and of the value's place, so that it does not depend on who computes it, and is the same when a step is
repeated.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from distrib.train.fixed_point import Chunks, FixedPoint, largest

_Floats = NDArray[np.float32]

# As for whole words: a value beyond this breaks its exponent's promise, and what is added is thrown away.
_FITS = 2.0**14


class _Kernels(NamedTuple):
    """Compiled loops over contiguous arrays; ``low`` and ``high`` hold the values of a word's two halves."""

    add: Callable[..., int]
    """(low, high float32, scale float32, first word's number, keys uint32 x2, total int32) -> bits of the peak."""
    read: Callable[..., None]
    """(total int32, factor float64, low, high float32)."""


@lru_cache(maxsize=1)
def _kernels() -> _Kernels:
    import numba

    sign, low_half = np.uint32(0x7FFFFFFF), np.uint32(0xFFFF)
    untyped: Any = numba.njit

    @untyped("uint32(uint32, uint32, uint32)")  # type: ignore[untyped-decorator]
    def mixed(number: Any, key_0: Any, key_1: Any) -> Any:
        # Wellons' lowbias32, keyed before and in its middle so that two keys' streams are no shifts of each other.
        h = np.uint32(number ^ key_0)
        h = np.uint32(np.uint32(h ^ (h >> np.uint32(16))) * np.uint32(0x7FEB352D))
        h = np.uint32(np.uint32(h ^ (h >> np.uint32(15))) + key_1)
        h = np.uint32(h * np.uint32(0x846CA68B))
        return np.uint32(h ^ (h >> np.uint32(16)))

    @untyped("int32(float32, float32, uint32)")  # type: ignore[untyped-decorator]
    def rounded(value: Any, scale: Any, random_16: Any) -> Any:
        scaled = value * scale
        dither = np.float32(np.int32(random_16)) * np.float32(2.0**-16) + np.float32(2.0**-17)
        return np.int32(np.floor(scaled + dither)) if abs(scaled) <= np.float32(_FITS) else np.int32(0)

    def add(low: Any, high: Any, scale: Any, first: Any, key_0: Any, key_1: Any, total: Any) -> Any:
        low_bits, high_bits, peak = low.view(np.uint32), high.view(np.uint32), np.uint32(0)
        for i in range(low.size):
            random_32 = mixed(np.uint32(first + np.uint32(i)), key_0, key_1)
            lower, upper = rounded(low[i], scale, random_32 & low_half), rounded(high[i], scale, random_32 >> 16)
            total[i] += np.int32(upper << 16) + lower
            peak = max(peak, max(low_bits[i] & sign, high_bits[i] & sign))
        return peak

    def read(total: Any, factor: Any, low: Any, high: Any) -> None:
        for i in range(total.size):
            lower = np.int32(np.int16(total[i]))
            low[i] = np.float32(np.float64(lower) * factor)
            high[i] = np.float32(np.float64(np.int32(total[i] - lower) >> 16) * factor)

    def compiled(signature: str, function: Callable[..., Any]) -> Callable[..., Any]:
        kernel: Callable[..., Any] = numba.njit(signature, nogil=True)(function)
        return kernel

    return _Kernels(compiled("uint32(float32[::1], float32[::1], float32, uint32, uint32, uint32, int32[::1])", add),
                    compiled("void(int32[::1], float64, float32[::1], float32[::1])", read))


class PackedFixedPoint(FixedPoint):
    """Two values a word: those of a tensor's first and second half, one by one; zero stands in if one is missing."""

    word_bits = 16
    margin = 1  # bits are scarce; measured, see docs/decisions/0004-less-to-send.md

    def __init__(self, threads: int = 1) -> None:
        self._packing = _kernels()
        self._chunks = Chunks(threads)

    def num_words(self, count: int) -> int:
        return (count + 1) // 2

    def add(self, values: Tensor, scale: float, total: Tensor, key: int = 0) -> float:
        """Like `FixedPoint.add`, rounding stochastically; ``total`` holds ``num_words`` words.

        ``key``, one of `key_of`, must be another for every tensor and lane that are added.
        """
        words = total.numpy()
        factor, keys = np.float32(scale), (np.uint32(key & 0xFFFFFFFF), np.uint32(key >> 32))

        def part(low: _Floats, high: _Floats, where: slice) -> int:
            return self._packing.add(low, high, factor, np.uint32(where.start), *keys, words[where])

        return largest(self._over_halves(values.detach().numpy(), part))

    def read(self, total: Tensor, factor: float, out: Tensor) -> None:
        """Like `FixedPoint.read`, from ``num_words`` words."""
        source = total.numpy()
        self._over_halves(out.numpy(), lambda low, high, where: self._packing.read(source[where], factor, low, high))

    def _over_halves(self, array: _Floats, work: Callable[[_Floats, _Floats, slice], Any]) -> list[Any]:
        """``work`` on parts of the two halves with the numbers of their words."""
        words, whole = self.num_words(array.size), array.size // 2
        low, high = array[:words], array[words:]
        results = self._chunks.map(lambda where: work(low[where], high[where], where), whole)
        if whole < words:
            results.append(work(low[whole:], np.zeros(1, np.float32), slice(whole, words)))
        return results
