"""Textures that repeat without a seam, made once: noise, pigment network, spots, grain. They never change."""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np
from lesion_traits import random_state
from numpy.typing import NDArray

Map = NDArray[np.float32]
Bytes = NDArray[np.uint8]
TILE = 512
GRAIN_SIDE = 1024
GRAIN_LIFT = 8.0  # added to the grain so that it fits into bytes


@lru_cache(maxsize=1)
def slow_noise() -> Map:
    """Four fields of noise from wavelengths of 64 down to 4 pixels, mean 0, deviation 1; [TILE, TILE, 4]."""
    return _noise(random_state(101), num_fields=4, roughness=1.9)


@lru_cache(maxsize=1)
def smooth_noise() -> Map:
    """Two fields without fine detail, mean 0, deviation 1; [TILE, TILE, 2]."""
    return _noise(random_state(105), num_fields=2, roughness=3.2)


def _noise(rng: np.random.Generator, num_fields: int, roughness: float) -> Map:
    frequency = np.hypot(np.fft.fftfreq(TILE)[:, None], np.fft.fftfreq(TILE)[None, :])
    # Amplitude falls with the frequency to this power, and is flat above a wavelength of 64 pixels.
    weight = np.where(frequency < 0.25, np.maximum(frequency, 1 / 64) ** -roughness, 0.0)
    fields = [np.fft.ifft2(np.fft.fft2(rng.normal(size=(TILE, TILE))) * weight).real for _ in range(num_fields)]
    stack = np.stack([(field - field.mean()) / field.std() for field in fields], axis=-1)
    return np.asarray(np.clip(stack, -2.5, 2.5), np.float32)


@lru_cache(maxsize=1)
def honeycomb() -> Bytes:
    """Lines of a net with irregular round holes about 11 pixels apart, 0 to 255; [4 * TILE, 4 * TILE]."""
    rng = random_state(102)
    distance = _to_nearest(_scattered(rng, rows=46, jitter=3.5))
    # The net is what is far from every point.
    net = cv2.GaussianBlur(distance, (0, 0), 0.9)[TILE:2 * TILE, TILE:2 * TILE]
    return np.tile(np.rint(255 * np.clip((net - 2.8) / 3.9, 0, 1)).astype(np.uint8), (4, 4))


@lru_cache(maxsize=1)
def spots() -> Bytes:
    """Round spots of several sizes, 0 to 255; [4 * TILE, 4 * TILE]."""
    rng = random_state(103)
    points = _scattered(rng, rows=36, jitter=6.0)
    points = points[rng.random(len(points)) < 0.7]
    canvas = np.zeros((3 * TILE, 3 * TILE), np.uint8)
    for y, x in points:
        size, shade = rng.uniform(1.0, 3.2), int(rng.integers(120, 256))
        for shift_y in (0, TILE, 2 * TILE):
            for shift_x in (0, TILE, 2 * TILE):
                cv2.circle(canvas, (round((x + shift_x) * 16), round((y + shift_y) * 16)), round(size * 16), shade, -1,
                           cv2.LINE_AA, 4)
    one = np.asarray(cv2.GaussianBlur(canvas, (0, 0), 0.7), np.uint8)[TILE:2 * TILE, TILE:2 * TILE]
    return np.tile(one, (4, 4))


@lru_cache(maxsize=1)
def grain() -> Bytes:
    """Relief of the skin and noise of the sensor around GRAIN_LIFT, [2 * GRAIN_SIDE, 2 * GRAIN_SIDE, 3].

    Twice the period, so that a window of GRAIN_SIDE can begin anywhere in the first one.
    """
    rng = random_state(104)
    relief = cv2.GaussianBlur(rng.normal(size=(GRAIN_SIDE, GRAIN_SIDE)).astype(np.float32), (0, 0), 1.3)
    noise = rng.normal(size=(GRAIN_SIDE, GRAIN_SIDE, 3)).astype(np.float32)
    one = np.clip(GRAIN_LIFT + 9.0 * np.asarray(relief)[..., None] + 1.4 * noise, 0, 255).astype(np.uint8)
    return np.tile(one, (2, 2, 1))


def _scattered(rng: np.random.Generator, *, rows: int, jitter: float) -> NDArray[np.float64]:
    """Points (y, x) in an even number of rows, staggered like a honeycomb, then moved about."""
    y, x = np.meshgrid(np.arange(rows), np.arange(rows), indexing="ij")
    points = np.stack([y, x + 0.5 * (y % 2)], axis=-1).reshape(-1, 2) * (TILE / rows)
    return (points + rng.uniform(-jitter, jitter, points.shape)) % TILE


def _to_nearest(points: NDArray[np.float64]) -> Map:
    """Distance of every pixel to the nearest point, for nine copies of the tile; true in the middle one."""
    canvas = np.full((3 * TILE, 3 * TILE), 255, np.uint8)
    for shift_y in (0, TILE, 2 * TILE):
        for shift_x in (0, TILE, 2 * TILE):
            canvas[points[:, 0].astype(int) + shift_y, points[:, 1].astype(int) + shift_x] = 0
    return np.asarray(cv2.distanceTransform(canvas, cv2.DIST_L2, cv2.DIST_MASK_PRECISE), np.float32)
