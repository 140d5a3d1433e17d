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
    thumbnails = np.frombuffer(b"".join(item.thumbnail for item in prints), np.uint8).reshape(-1, _SIDE, _SIDE)
    sharp = _contrast(thumbnails) >= _MIN_CONTRAST
    result = []
    for number, later in enumerate(SPLITS):
        for earlier in SPLITS[:number]:
            firsts = {prints[i].digest: i for i in reversed(members[earlier])}
            rest = []
            for second in members[later]:
                if (first := firsts.get(prints[second].digest)) is not None:
                    result.append(Pair(first, second, exact=True))
                elif sharp[second]:
                    rest.append(second)
            columns = np.array([i for i in members[earlier] if sharp[i]], dtype=np.int64)
            near = _closest(bits, thumbnails, columns, np.array(rest, dtype=np.int64))
            result += [Pair(first, second, exact=False) for first, second in near]
    return sorted(result, key=lambda pair: (pair.second, pair.first))


def _closest(bits: NDArray[np.uint64], thumbnails: NDArray[np.uint8], firsts: NDArray[np.int64],
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
        best = np.full(len(block), MIN_CORRELATION)
        match = np.full(len(block), -1, dtype=np.int64)
        for at in range(0, int(close.sum()), _VERIFIED_AT_ONCE):
            rows = row[close][at:at + _VERIFIED_AT_ONCE]
            others = firsts[column[close][at:at + _VERIFIED_AT_ONCE]]
            alike = np.einsum("ij,ij->i", _gradients(thumbnails[block[rows]]), _gradients(thumbnails[others]))
            for r, other, value in zip(rows, others, alike, strict=True):
                if value > best[r]:
                    best[r], match[r] = value, other
        for r in np.flatnonzero(match >= 0):
            yield int(match[r]), int(block[r])


def _differences(thumbnails: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Horizontal and vertical differences of neighbours, [N, 2 * 32 * 31]."""
    values = thumbnails.astype(np.float32)
    right = (values[:, :, 1:] - values[:, :, :-1]).reshape(len(values), -1)
    down = (values[:, 1:] - values[:, :-1]).reshape(len(values), -1)
    return np.concatenate([right, down], axis=1)


def _gradients(thumbnails: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Differences at length one: their inner product is the correlation."""
    differences = _differences(thumbnails)
    differences /= np.sqrt(np.einsum("ij,ij->i", differences, differences))[:, np.newaxis]
    return differences


def _contrast(thumbnails: NDArray[np.uint8]) -> NDArray[np.float64]:
    result = np.empty(len(thumbnails))
    for start in range(0, len(thumbnails), _VERIFIED_AT_ONCE):
        block = _differences(thumbnails[start:start + _VERIFIED_AT_ONCE])
        result[start:start + _VERIFIED_AT_ONCE] = np.sqrt(np.mean(block * block, axis=1))
    return result


def _pack(bits: NDArray[np.bool_]) -> int:
    return int.from_bytes(np.packbits(bits).tobytes(), "big")
