"""Images that show the same thing: equal pixels, or nearly equal pictures.

Near means: copies re-encoded, resized by a whole pixel grid, or changed in brightness. Two pictures count as
near when the gradients of their 32x32 grey thumbnails correlate by `MIN_CORRELATION`. Gradients, because all
photographs of a dark spot on bright skin correlate, and all digits are black at the border. Measured: of the
12.5 million pairs of 5,000 handwritten digits the closest reach 0.958, of 80,000 pairs of drawn lesions 0.887;
copies at JPEG quality 30, at half the size, or with 2 pixels cut off stay above 0.988.

A 128-bit difference hash, compared pair by pair across splits (about 1 ns each), finds the candidates.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from distrib.data.decode import Pixels
from distrib.data.manifest import SPLITS, Split

MIN_CORRELATION = 0.97
_MAX_BITS = 20
# Grey levels a neighbour must be brighter by to set a bit, so that noise in a flat background sets none.
_MARGIN = 3
# Root mean square of the thumbnail's gradient, in grey levels, below which it is a flat image: all of those are alike.
_MIN_CONTRAST = 0.5
_SIDE = 32
_COMPARED_AT_ONCE = 1 << 23
_VERIFIED_AT_ONCE = 8192
# Correlation of the 16x16 thumbnails, which copies exceed and nearly all else does not.
_MIN_COARSE = 0.95


@dataclass(frozen=True)
class Fingerprint:
    digest: bytes
    """SHA-256 of the pixels; RGB with three equal channels counts as grey."""
    bits: tuple[int, int]
    """Difference hash: is the right neighbour brighter, is the lower one; 64 bits each."""
    thumbnail: bytes
    """32x32 grey levels."""


def fingerprint(pixels: Pixels) -> Fingerprint:
    """What `same_pixels` and `near_pairs` compare, of uint8 [H, W, 1 or 3]."""
    if pixels.shape[2] == 3 and np.array_equal(pixels[:, :, 0], pixels[:, :, 1]) \
            and np.array_equal(pixels[:, :, 0], pixels[:, :, 2]):
        pixels = pixels[:, :, :1]
    content = np.ascontiguousarray(pixels)
    digest = hashlib.sha256(repr(content.shape).encode())
    digest.update(content.data)
    grey = content[:, :, 0] if content.shape[2] == 1 else cv2.cvtColor(content, cv2.COLOR_RGB2GRAY)
    thumbnail = cv2.resize(grey, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA)
    wide = cv2.resize(thumbnail, (9, 8), interpolation=cv2.INTER_AREA).astype(np.int16)
    tall = cv2.resize(thumbnail, (8, 9), interpolation=cv2.INTER_AREA).astype(np.int16)
    bits = _pack(wide[:, 1:] - wide[:, :-1] > _MARGIN), _pack(tall[1:] - tall[:-1] > _MARGIN)
    return Fingerprint(digest.digest(), bits, thumbnail.tobytes())


def same_pixels(prints: Sequence[Fingerprint]) -> list[list[int]]:
    """Sets of two or more positions whose pixels are equal, in order of their first."""
    places: dict[bytes, list[int]] = defaultdict(list)
    for position, item in enumerate(prints):
        places[item.digest].append(position)
    return [found for found in places.values() if len(found) > 1]


@dataclass(frozen=True)
class Pair:
    first: int
    second: int
    exact: bool


def pairs_across(prints: Sequence[Fingerprint], splits: Sequence[Split]) -> list[Pair]:
    """For every image, the one in each earlier split (train before val before test) that it most resembles.

    ``first`` is the position in the earlier split. One pair per image and earlier split, so that a picture
    repeated a thousand times is no million pairs. Sorted by (second, first).
    """
    members = {split: [i for i, place in enumerate(splits) if place == split] for split in SPLITS}
    bits = np.array([item.bits for item in prints], dtype=np.uint64).reshape(-1, 2)
    pictures = _Pictures(prints)
    result = []
    for number, later in enumerate(SPLITS):
        for earlier in SPLITS[:number]:
            firsts = {prints[i].digest: i for i in reversed(members[earlier])}
            rest = []
            for second in members[later]:
                if (first := firsts.get(prints[second].digest)) is not None:
                    result.append(Pair(first, second, exact=True))
                elif pictures.sharp[second]:
                    rest.append(second)
            columns = np.array([i for i in members[earlier] if pictures.sharp[i]], dtype=np.int64)
            near = _closest(bits, pictures, columns, np.array(rest, dtype=np.int64))
            result += [Pair(first, second, exact=False) for first, second in near]
    return sorted(result, key=lambda pair: (pair.second, pair.first))


def nearest(prints: Sequence[Fingerprint], firsts: Sequence[int], seconds: Sequence[int]) -> dict[int, int]:
    """For every second that nearly shows what one of the firsts does, the nearest of those. Positions in ``prints``."""
    pictures = _Pictures(prints)
    bits = np.array([item.bits for item in prints], dtype=np.uint64).reshape(-1, 2)
    columns, rows = (np.array([i for i in some if pictures.sharp[i]], dtype=np.int64) for some in (firsts, seconds))
    return {second: first for first, second in _closest(bits, pictures, columns, rows)}


def _closest(bits: NDArray[np.uint64], pictures: _Pictures, firsts: NDArray[np.int64],
             seconds: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """(first, second) of every second that has a near first, the nearest of them."""
    if not len(firsts) or not len(seconds):
        return
    columns = bits[firsts]
    rows_at_once = max(1, _COMPARED_AT_ONCE // len(firsts))
    for start in range(0, len(seconds), rows_at_once):
        block = seconds[start:start + rows_at_once]
        distance = np.bitwise_count(bits[block, 0][:, None] ^ columns[:, 0])
        row, column = np.nonzero(distance <= _MAX_BITS)
        second_half = np.bitwise_count(bits[block[row], 1] ^ columns[column, 1])
        close = distance[row, column].astype(np.int64) + second_half <= _MAX_BITS
        row, others = row[close], firsts[column[close]]
        best = np.full(len(block), MIN_CORRELATION)
        match = np.full(len(block), -1, dtype=np.int64)
        for at in range(0, len(row), _VERIFIED_AT_ONCE):
            piece = slice(at, at + _VERIFIED_AT_ONCE)
            for r, other, value in pictures.alike(row[piece], block, others[piece]):
                if value > best[r]:
                    best[r], match[r] = value, other
        yield from zip(match[match >= 0].tolist(), block[match >= 0].tolist(), strict=True)


class _Pictures:
    """The thumbnails of all images, and how much two of them correlate."""

    def __init__(self, prints: Sequence[Fingerprint]) -> None:
        content = b"".join(item.thumbnail for item in prints)
        self._thumbnails = np.frombuffer(content, np.uint8).reshape(-1, _SIDE, _SIDE)
        self.sharp = np.zeros(len(prints), dtype=bool)
        """Whether an image has anything to compare."""
        half = _SIDE // 2
        self._coarse = np.empty((len(prints), 2 * half * (half - 1)), dtype=np.float16)
        for start in range(0, len(prints), _VERIFIED_AT_ONCE):
            block = self._thumbnails[start:start + _VERIFIED_AT_ONCE].astype(np.float32)
            self.sharp[start:start + len(block)] = np.mean(_gradients(block) ** 2, axis=1) >= _MIN_CONTRAST**2
            self._coarse[start:start + len(block)] = _unit(_gradients(block.reshape(-1, half, 2, half, 2).mean((2, 4))))

    def alike(self, rows: NDArray[np.int64], block: NDArray[np.int64],
              others: NDArray[np.int64]) -> Iterator[tuple[int, int, float]]:
        """(row, other, correlation) of the pairs (block[row], other) that half as fine a look does not rule out."""
        coarse = np.einsum("ij,ij->i", self._coarse[block[rows]].astype(np.float32), self._coarse[others])
        rows, others = rows[coarse > _MIN_COARSE], others[coarse > _MIN_COARSE]
        fine = np.einsum("ij,ij->i", self._fine(block[rows]), self._fine(others))
        return zip(rows.tolist(), others.tolist(), fine.tolist(), strict=True)

    def _fine(self, which: NDArray[np.int64]) -> NDArray[np.float32]:
        return _unit(_gradients(self._thumbnails[which].astype(np.float32)))


def _gradients(images: NDArray[np.float32]) -> NDArray[np.float32]:
    """Horizontal and vertical differences of neighbours: [N, S, S] to [N, 2 * S * (S - 1)]."""
    size = images.shape[1] * (images.shape[1] - 1)
    right = (images[:, :, 1:] - images[:, :, :-1]).reshape(len(images), size)
    down = (images[:, 1:] - images[:, :-1]).reshape(len(images), size)
    return np.concatenate([right, down], axis=1)


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """At length one, so that inner products are correlations; zeros stay zeros."""
    length: NDArray[np.float32] = np.sqrt(np.einsum("ij,ij->i", vectors, vectors))
    length[length < 1e-6] = 1
    return vectors / length[:, np.newaxis]


def _pack(bits: NDArray[np.bool_]) -> int:
    return int.from_bytes(np.packbits(bits).tobytes(), "big")
