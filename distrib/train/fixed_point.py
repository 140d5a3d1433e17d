"""Float32 to fixed point and back, in one pass over memory: compiled when first needed, by numba.

The loops are bound by memory, so a value is fetched once: scaled, rounded, added and compared with the
largest magnitude on the way. Rounding is to the nearest integer, halves to even, so that what comes out does
not depend on how the loops were compiled.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

# What does not fit an integer has no defined value there. A magnitude so large breaks its exponent's promise
# (and NaN does), so whatever is added in its place is thrown away.
_FITS = 2.0**30
_CHUNK = 1 << 18
"""Elements that a thread takes at a time."""


class _Kernels(NamedTuple):
    """Compiled loops over contiguous arrays; they let other threads run meanwhile."""

    add: Callable[..., int]
    """(values float32, scale float32, total int32) -> bits of the largest magnitude."""
    read: Callable[..., None]
    """(total int32, factor float64, out float32)."""


@lru_cache(maxsize=1)
def _kernels() -> _Kernels:
    import numba  # takes 0.2 s to import, and the loops 0.8 s to compile

    inline: Any = numba.njit(inline="always")

    @inline  # type: ignore[untyped-decorator]
    def rounded(value: Any, scale: Any) -> Any:
        scaled = value * scale
        return np.int32(np.rint(scaled)) if abs(scaled) <= np.float32(_FITS) else np.int32(0)

    def add(values: Any, scale: Any, total: Any) -> Any:
        bits, peak = values.view(np.uint32), np.uint32(0)
        for i in range(values.size):
            total[i] += rounded(values[i], scale)  # in place: two arrays that may overlap would not be vectorised
            peak = max(peak, bits[i] & np.uint32(0x7FFFFFFF))
        return peak

    def read(total: Any, factor: Any, out: Any) -> None:
        for i in range(total.size):
            out[i] = np.float32(np.float64(total[i]) * factor)

    def compiled(signature: str, function: Callable[..., Any]) -> Callable[..., Any]:
        kernel: Callable[..., Any] = numba.njit(signature, nogil=True)(function)
        return kernel

    return _Kernels(
        compiled("uint32(float32[::1], float32, int32[::1])", add),
        compiled("void(int32[::1], float64, float32[::1])", read),
    )


def memory_order(tensor: Tensor) -> Tensor:
    """A dense tensor's elements as they lie in memory, 1-d, sharing it."""
    return tensor.as_strided((tensor.numel(),), (1,))


class Chunks:
    """Works through long arrays with up to ``threads`` threads."""

    def __init__(self, threads: int = 1) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="fixed-point") if threads > 1 else None

    def map(self, work: Callable[[slice], Any], count: int) -> list[Any]:
        """``work`` of slices that together cover 0 .. count-1."""
        if self._pool is None or count <= _CHUNK:
            return [work(slice(0, count))]
        starts = range(0, count, _CHUNK)
        return list(self._pool.map(work, (slice(start, min(start + _CHUNK, count)) for start in starts)))


def largest(bits: Sequence[int]) -> float:
    """The largest of float32 magnitudes given by their bits; infinite if one is no finite number."""
    # Magnitudes of floats are ordered like their bits, NaN above infinity.
    peak = float(np.uint32(max(bits)).view(np.float32))
    return peak if math.isfinite(peak) else math.inf


class FixedPoint:
    """One int32 word a value, with up to ``threads`` threads."""

    word_bits = 32
    margin = 2
    """See `distrib.train.exact.Exponents`."""

    def __init__(self, threads: int = 1) -> None:
        self._kernels = _kernels()
        self._chunks = Chunks(threads)

    def num_words(self, count: int) -> int:
        """Words that hold ``count`` values."""
        return count

    def add(self, values: Tensor, scale: float, total: Tensor, key: int = 0) -> float:  # noqa: ARG002
        """``total += round(values * scale)``; returns max |values|, infinite if one is no finite number.

        values: float32, total: int32, both 1-d contiguous of one length. Rounding needs no random numbers, so
        ``key`` is not used.
        """
        array, words, factor = values.detach().numpy(), total.numpy(), np.float32(scale)

        def part(where: slice) -> int:
            return self._kernels.add(array[where], factor, words[where])

        return largest(self._chunks.map(part, values.numel()))

    def read(self, total: Tensor, factor: float, out: Tensor) -> None:
        """``out = total * factor``, rounded once; int32 to float32, both 1-d contiguous of one length."""
        source, target = total.numpy(), out.numpy()
        self._chunks.map(lambda where: self._kernels.read(source[where], factor, target[where]), total.numel())
