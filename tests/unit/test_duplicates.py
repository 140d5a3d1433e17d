"""Copies are found, whatever was done to them; different pictures are not called copies."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import pytest
import simplejpeg

from distrib.data.decode import Pixels
from distrib.data.duplicates import Fingerprint, Pair, fingerprint, pairs_across, same_pixels
from distrib.data.manifest import Split
from distrib.data.split import split_named


def lesion(number: int) -> Pixels:
    """A dark, uneven spot in the middle of bright skin: photographs of these all look alike from afar."""
    rng = np.random.default_rng(number)
    y, x = np.mgrid[:150, :200]
    angle = np.arctan2(y - 75, x - 100)
    edge = 1 + sum(rng.normal(0, 0.12) / k * np.cos(k * angle + rng.uniform(0, 6)) for k in range(1, 6))
    distance = np.hypot((x - 100) / rng.uniform(35, 55), (y - 75) / rng.uniform(30, 45)) / edge
    inside = 1 / (1 + np.exp((distance - 1) * 9))[:, :, None]
    texture = cv2.GaussianBlur(rng.normal(0, 60, (150, 200)), (0, 0), 3)[:, :, None]
    image = np.array([220, 170, 150]) * (1 - inside) + np.array([110, 70, 50]) * inside + texture
    pixels: Pixels = np.clip(image, 0, 255).astype(np.uint8)
    return pixels


def stroke(number: int) -> Pixels:
    """A white stroke on black, 28x28: as near to binary as a handwritten digit."""
    rng = np.random.default_rng(number)
    image = np.zeros((28, 28), np.uint8)
    points = np.cumsum(rng.normal(0, 4, (5, 2)), axis=0)
    points = (points - points.mean(0)) + 14
    cv2.polylines(image, [np.rint(points * 8).astype(np.int32)], False, 255, 2, cv2.LINE_AA, 3)
    return image[:, :, None]


def recoded(pixels: Pixels, quality: int) -> Pixels:
    grey = pixels.shape[2] == 1
    space = "GRAY" if grey else "RGB"
    raw = simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality, space, "Gray" if grey else "420")
    return simplejpeg.decode_jpeg(raw, space)  # type: ignore[no-any-return]


def places(**counts: int) -> list[Split]:
    """So many times each split, in this order."""
    return [split for name, count in counts.items() if (split := split_named(name)) for _ in range(count)]


CHANGES: dict[str, Callable[[Pixels], Pixels]] = {
    "quality 40": lambda pixels: recoded(pixels, 40),
    "half the size": lambda pixels: np.asarray(cv2.resize(pixels, (100, 75), interpolation=cv2.INTER_AREA), np.uint8),
    "brighter": lambda pixels: np.asarray(cv2.convertScaleAbs(pixels, alpha=0.9, beta=15), np.uint8),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changed_copies_are_found_and_only_they(change: str) -> None:
    pictures = [lesion(number) for number in range(40)]
    prints = [fingerprint(pixels) for pixels in pictures + [CHANGES[change](pixels) for pixels in pictures]]
    expected = [Pair(number, 40 + number, exact=False) for number in range(40)]
    assert pairs_across(prints, places(train=40, test=40)) == expected


@pytest.mark.parametrize("draw", [lesion, stroke])
def test_different_pictures_are_no_copies(draw: Callable[[int], Pixels]) -> None:
    prints = [fingerprint(draw(number)) for number in range(300)]
    splits: list[Split] = ["train" if number % 2 else "val" for number in range(300)]
    assert pairs_across(prints, splits) == []


def test_recoded_strokes_are_found() -> None:
    pictures = [stroke(number) for number in range(60)]
    prints = [fingerprint(pixels) for pixels in pictures + [recoded(pixels, 80) for pixels in pictures]]
    pairs = pairs_across(prints, places(train=60, val=60))
    assert [(pair.first, pair.second) for pair in pairs] == [(number, 60 + number) for number in range(60)]


def test_flat_images_are_no_near_copies() -> None:
    flat = [np.full((40, 40, 3), level, np.uint8) for level in range(100)]
    noisy = [np.clip(np.random.default_rng(n).normal(128, 2, (40, 40, 3)), 0, 255).astype(np.uint8) for n in range(100)]
    prints = [fingerprint(pixels) for pixels in flat + noisy]
    splits: list[Split] = ["train" if number % 2 else "test" for number in range(200)]
    assert pairs_across(prints, splits) == []


def test_equal_pixels_are_exact_whatever_their_channels() -> None:
    grey = stroke(0)
    prints = [fingerprint(pixels) for pixels in (grey, np.repeat(grey, 3, axis=2), stroke(1), lesion(0))]
    assert same_pixels(prints) == [[0, 1]]
    assert pairs_across(prints, ["train", "val", "val", "test"]) == [Pair(0, 1, exact=True)]
    assert pairs_across(prints, ["test", "val", "val", "test"]) == [Pair(1, 0, exact=True)], "val comes before test"
    assert pairs_across(prints, ["val", "val", "test", "train"]) == [], "copies within a split do no harm"


def test_the_shape_counts() -> None:
    row = np.arange(16, dtype=np.uint8)
    prints = [fingerprint(row.reshape(4, 4, 1)), fingerprint(row.reshape(2, 8, 1))]
    assert same_pixels(prints) == []


def test_a_picture_repeated_often_is_not_a_flood() -> None:
    prints = [fingerprint(lesion(0))] * 60
    pairs = pairs_across(prints, places(train=20, val=20, test=20))
    assert len(pairs) == 20 + 2 * 20
    assert {pair.first for pair in pairs} == {0, 20}


def test_one_pixel_has_a_fingerprint() -> None:
    prints = [fingerprint(np.zeros((1, 1, channels), np.uint8)) for channels in (1, 3)]
    assert prints[0] == prints[1]
    assert isinstance(prints[0], Fingerprint)


def test_nothing_to_compare() -> None:
    assert pairs_across([], []) == []
    assert pairs_across([fingerprint(lesion(1))], ["test"]) == []
