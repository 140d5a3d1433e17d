"""Random numbers that are pure functions of a key.

Library generators may change their streams between versions; these never do. The function is the
finaliser of SplitMix64 (Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators",
2014) over a counter, chained over the parts of the key.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1, _MIX_2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_MASK = (1 << 64) - 1


def _mix(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    z = (z ^ (z >> np.uint64(30))) * _MIX_1
    z = (z ^ (z >> np.uint64(27))) * _MIX_2
    return z ^ (z >> np.uint64(31))


def _mix_int(z: int) -> int:
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)


def key_of(*parts: int) -> int:
    """One 64-bit key out of integers, each of up to 64 bits; the order of the parts matters."""
    key = 0
    for part in parts:
        key = _mix_int((key + int(_GOLDEN) + _mix_int(part & _MASK)) & _MASK)
    return key


def words(key: int, count: int) -> NDArray[np.uint64]:
    """``count`` independent 64-bit words."""
    counter = np.arange(1, count + 1, dtype=np.uint64)
    return _mix(np.uint64(key) + counter * _GOLDEN)


def uniforms(key: int, count: int) -> NDArray[np.float64]:
    """``count`` numbers in [0, 1), with 53 random bits each."""
    return (words(key, count) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def permutation(key: int, count: int) -> NDArray[np.int64]:
    """A random order of 0 .. count-1."""
    return np.argsort(words(key, count), kind="stable")
