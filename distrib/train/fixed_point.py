"""Float32 to fixed point and back, in one pass over memory: compiled when first needed, by numba.

The loops are bound by memory, so a value is fetched once: scaled, rounded, added and compared with the
largest magnitude on the way. Rounding is to the nearest integer, halves to even, so that what comes out does
not depend on how the loops were compiled.
"""

from __future__ import annotations

import math
from collections.abc import Callable
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

    write: Callable[..., int]
    """(values float32, scale float32, out int32) -> bits of the largest magnitude."""
    add: Callable[..., int]
    """(values float32, scale float32, total int32, out int32) -> bits of the largest magnitude."""
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

    def write(values: Any, scale: Any, out: Any) -> Any:
        bits, peak = values.view(np.uint32), np.uint32(0)
        for i in range(values.size):
            out[i] = rounded(values[i], scale)
            peak = max(peak, bits[i] & np.uint32(0x7FFFFFFF))
        return peak

    def add(values: Any, scale: Any, total: Any, out: Any) -> Any:
        bits, peak = values.view(np.uint32), np.uint32(0)
        for i in range(values.size):
            out[i] = total[i] + rounded(values[i], scale)
            peak = max(peak, bits[i] & np.uint32(0x7FFFFFFF))
        return peak

    def read(total: Any, factor: Any, out: Any) -> None:
        for i in range(total.size):
            out[i] = np.float32(np.float64(total[i]) * factor)

    def compiled(signature: str, function: Callable[..., Any]) -> Callable[..., Any]:
        kernel: Callable[..., Any] = numba.njit(signature, nogil=True)(function)
        return kernel

    return _Kernels(
        compiled("uint32(float32[::1], float32, int32[::1])", write),
        compiled("uint32(float32[::1], float32, int32[::1], int32[::1])", add),
        compiled("void(int32[::1], float64, float32[::1])", read),
    )


class FixedPoint:
    """Quantises with up to ``threads`` threads; large tensors are shared out among them."""

    def __init__(self, threads: int = 1) -> None:
        self._kernels = _kernels()
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="fixed-point") if threads > 1 else None

    def add(self, values: Tensor, scale: float, total: Tensor, out: Tensor | None) -> float:
        """``out = total + round(values * scale)``; returns max |values|, infinite if one is no finite number.

        values: float32, total and out: int32, all 1-d contiguous of one length. ``out`` may be ``total``;
        ``total`` is not read when ``out`` is None, and is overwritten by the rounded values instead.
        """
        factor = np.float32(scale)
        arrays = [values.detach().numpy(), total.numpy()] + ([out.numpy()] if out is not None else [])
        kernel = self._kernels.write if out is None else self._kernels.add

        def part(where: slice) -> int:
            values_part, *others = (array[where] for array in arrays)
            return kernel(values_part, factor, *others)

        # Magnitudes of floats are ordered like their bits, NaN above infinity.
        peak = float(np.uint32(max(self._over_chunks(part, values.numel()))).view(np.float32))
        return peak if math.isfinite(peak) else math.inf

    def read(self, total: Tensor, factor: float, out: Tensor) -> None:
        """``out = total * factor``, rounded once; int32 to float32, both 1-d contiguous of one length."""
        source, target = total.numpy(), out.numpy()
        self._over_chunks(lambda where: self._kernels.read(source[where], factor, target[where]), total.numel())

    def _over_chunks(self, work: Callable[[slice], Any], count: int) -> list[Any]:
        if self._pool is None or count <= _CHUNK:
            return [work(slice(0, count))]
        return list(self._pool.map(work, (slice(start, start + _CHUNK) for start in range(0, count, _CHUNK))))
