"""Where a lesion lies in a picture, and what is drawn along its own axes: noise, textures, vessels, cysts."""

from __future__ import annotations

import math

import cv2
import numpy as np
from lesion_texture import TILE, Bytes, Map, slow_noise, smooth_noise
from lesion_traits import Lesion, View, random_state
from numpy.typing import NDArray

Box = tuple[slice, slice]
Point = tuple[float, float]


class Frame:
    """Coordinates of a lesion in one view: its middle is the origin, its mean radius the unit.

    ``box`` is the part of the picture that holds the lesion; maps come at its size, or at half of it.
    """

    def __init__(self, lesion: Lesion, view: View, rows: int, columns: int) -> None:
        self._lesion, self._mirror = lesion, -1.0 if view.mirrored else 1.0
        self._radius = lesion.radius * view.scale * rows
        self._pixels_a_height = view.scale * rows
        self._x, self._y = columns / 2 + view.shift[0] * rows, rows / 2 + view.shift[1] * rows
        self._cos, self._sin = math.cos(view.angle), math.sin(view.angle)
        self._rng = random_state(lesion.seed, 13)
        reach = self._radius * 1.8
        self._top, bottom = max(0, int(self._y - reach)), min(rows, int(self._y + reach) + 1)
        self._left, right = max(0, int(self._x - reach)), min(columns, int(self._x + reach) + 1)
        self._height, self._width = bottom - self._top, right - self._left
        self.box: Box = (slice(self._top, bottom), slice(self._left, right))
        # At half the resolution, the first pixel's middle lies half a pixel further in.
        self._half = (-(-self._height // 2), -(-self._width // 2))
        self._half_step = (self._height / self._half[0], self._width / self._half[1])

    def grid(self) -> tuple[Map, Map]:
        """Lesion coordinates (u, v) of every pixel, at half the resolution."""
        (rows, columns), (step_y, step_x) = self._half, self._half_step
        x = ((np.arange(columns) + 0.5) * step_x - 0.5 + self._left - self._x) / self._radius
        y = ((np.arange(rows) + 0.5) * step_y - 0.5 + self._top - self._y) / self._radius
        x, y = x.astype(np.float32)[None, :], y.astype(np.float32)[:, None]
        c, s, m = np.float32(self._cos), np.float32(self._sin), np.float32(self._mirror)
        return c * x + s * y, m * (c * y - s * x)

    def enlarged(self, half: Map) -> Map:
        """A map of half the resolution at the full one."""
        return resized(half, self._height, self._width)

    def slow_noise(self, scale: float, number: int) -> tuple[Map, ...]:
        """Four fields of mean 0 and deviation 1 at half the resolution, ``scale`` texture pixels a radius."""
        return self._sample(slow_noise(), scale / self._radius, number, self._half)

    def smooth_noise(self) -> tuple[Map, ...]:
        """Two fields for the outline, without fine detail, at half the resolution."""
        return self._sample(smooth_noise(), 26.0 / self._radius, 2, self._half)

    def texture(self, tile: Bytes, fineness: float) -> Map:
        """A texture, 0 to 1, of the same grain on every lesion: ``fineness`` times 1,000 texels a picture height."""
        step = 1000 * fineness / self._pixels_a_height
        return self._sample(tile, step, 5, (self._height, self._width))[0] / np.float32(255)

    def _sample(self, tile: Map | Bytes, step: float, number: int, size: tuple[int, int]) -> tuple[Map, ...]:
        """Channels of a tile along the lesion's axes, ``step`` texels a full pixel."""
        # Near the middle of the tile: what lies inside it is sampled many times faster than what wraps around.
        room = TILE / 2 if len(tile) > TILE else TILE / 6
        offset = len(tile) / 2 + random_state(self._lesion.seed, 17, number).uniform(-room, room, 2)
        c, s, m = self._cos * step, self._sin * step, self._mirror
        turn = np.array([[c, s], [-m * s, m * c]])
        zoom = np.array([self._width / size[1], self._height / size[0]])
        first = 0.5 * zoom - 0.5 + [self._left - self._x, self._top - self._y]
        matrix = np.column_stack([turn * zoom, offset + turn @ first])
        sampled = cv2.warpAffine(tile, matrix, (size[1], size[0]), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
                                 borderMode=cv2.BORDER_WRAP)
        return tuple(np.asarray(channel, np.float32) for channel in cv2.split(sampled))

    def _pixel(self, u: float, v: float) -> Point:
        v *= self._mirror
        return (self._x - self._left + self._radius * (self._cos * u - self._sin * v),
                self._y - self._top + self._radius * (self._sin * u + self._cos * v))

    def vessels(self) -> Map:
        """Branching vessels, 0 to 1."""
        canvas = np.zeros((self._height, self._width), np.uint8)
        thickness = self._pixels_a_height / 450 * 2.8
        for _ in range(int(2 + 4 * self._lesion.vessels)):
            angle = self._rng.uniform(0, 2 * math.pi)
            start = (0.95 * math.cos(angle), 0.95 * math.sin(angle))
            self._branch(canvas, start, angle + math.pi + self._rng.normal(0, 0.5), 0.9, thickness, 3)
        return _softened(canvas, 3)

    def _branch(self, canvas: NDArray[np.uint8], start: Point, angle: float, length: float, thickness: float,
                depth: int) -> None:
        points = [start]
        for _ in range(7):
            angle += self._rng.normal(0, 0.34)
            u, v = points[-1]
            points.append((u + length / 7 * math.cos(angle), v + length / 7 * math.sin(angle)))
            if depth and self._rng.random() < 0.28:
                turn = self._rng.choice((-1, 1)) * self._rng.uniform(0.4, 0.9)
                self._branch(canvas, points[-1], angle + turn, 0.55 * length, 0.6 * thickness, depth - 1)
        draw_curve(canvas, [self._pixel(u, v) for u, v in points], int(self._rng.integers(150, 256)), thickness)

    def cysts(self) -> tuple[Map, Map]:
        """Milia-like cysts (white) and comedo-like openings (dark), each 0 to 1."""
        drawn = []
        for most in (26, 12):
            canvas = np.zeros((self._height, self._width), np.uint8)
            for _ in range(self._rng.integers(1, 2 + int(most * self._lesion.cysts))):
                distance, angle = 0.85 * math.sqrt(self._rng.random()), self._rng.uniform(0, 2 * math.pi)
                x, y = self._pixel(distance * math.cos(angle), distance * math.sin(angle))
                size = self._pixels_a_height / 450 * self._rng.uniform(1.2, 4.5)
                cv2.circle(canvas, (round(x * 16), round(y * 16)), round(size * 16),
                           int(self._rng.integers(90, 256)), -1, cv2.LINE_AA, 4)
            drawn.append(_softened(canvas, 5))
        return drawn[0], drawn[1]


def resized(image: Map, rows: int, columns: int) -> Map:
    """Bilinear, pixel areas aligned."""
    return np.asarray(cv2.resize(image, (columns, rows), interpolation=cv2.INTER_LINEAR), np.float32)


def draw_curve(canvas: NDArray[np.uint8], points: list[Point], color: float | tuple[float, ...],
               thickness: float) -> None:
    """A smooth line through the points (x, y), in place."""
    line = np.rint(np.array(points) * 16).astype(np.int32).reshape(-1, 1, 2)
    shade = color if isinstance(color, tuple) else (color,)
    cv2.polylines(canvas, [line], False, shade, max(1, round(thickness)), cv2.LINE_AA, 4)


def _softened(canvas: NDArray[np.uint8], side: int) -> Map:
    return np.asarray(cv2.GaussianBlur(canvas, (side, side), 0), np.float32) / np.float32(255)
