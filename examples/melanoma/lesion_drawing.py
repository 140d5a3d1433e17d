"""Pixels of a drawn lesion: light absorbed by melanin and blood, as a dermatoscope sees it.

Whatever absorbs is a map of optical density; densities add up, and light falls off with the exponential
of their sum (Beer and Lambert). What scatters (scars, scale, cysts) is laid on top.
"""

from __future__ import annotations

import math

import cv2
import numpy as np
from lesion_frame import Frame, draw_curve, resized
from lesion_texture import GRAIN_LIFT, GRAIN_SIDE, TILE, Map, grain, honeycomb, slow_noise, spots
from lesion_traits import Lesion, Skin, View, random_state
from numpy.typing import NDArray

Picture = NDArray[np.uint8]

# Optical density for red, green and blue light of one unit of melanin, blood, and melanin deep in the skin, whose
# scattered blue light makes it look grey-blue.
_MELANIN, _BLOOD, _DEEP = (0.60, 1.02, 1.28), (0.20, 1.00, 0.78), (0.96, 0.80, 0.56)
_PAPER = (247.0, 224.0, 214.0)  # skin without pigment or blood
_SCAR = (230.0, 206.0, 202.0)
_MAX_DRAWN_WIDTH = 1500  # pixels; larger pictures are enlarged from this, as soft as photographs of skin are


def paint(skin: Skin, lesion: Lesion, view: View, height: int, width: int) -> Picture:
    """The picture, RGB uint8 [height, width, 3]."""
    shrink = max(1.0, width / _MAX_DRAWN_WIDTH)
    rows, columns = round(height / shrink), round(width / shrink)
    rng = random_state(view.seed, 11)
    density = _skin_density(skin, view, rows, columns, rng)
    frame = Frame(lesion, view, rows, columns)
    white = _lesion_density(lesion, frame, density[frame.box])
    image = np.asarray(cv2.convertScaleAbs(cv2.exp(density, dst=density)), np.uint8)
    if white is not None:
        _lay_white(image[frame.box], white, view.exposure)
    _draw_hairs(image, skin, lesion.seed, view)
    if (rows, columns) != (height, width):
        image = np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR), np.uint8)
    _add_grain(image, rng)
    return image


def _skin_density(skin: Skin, view: View, rows: int, columns: int, rng: np.random.Generator) -> Map:
    """Logarithm of the light from bare skin, shadows included, [rows, columns, 3]. Drawn small: it is smooth."""
    height, width = max(rows // 8, 8), max(columns // 8, 8)
    top, left = rng.integers(0, TILE - max(height, width), 2)
    noise = slow_noise()[top:top + height, left:left + width]
    y = np.linspace(-0.5, 0.5, height, dtype=np.float32)[:, None]
    x = np.linspace(-0.5, 0.5, width, dtype=np.float32)[None, :] * np.float32(columns / rows)
    melanin = skin.melanin * (1 + 0.16 * skin.mottling * noise[..., 0])
    blood = skin.blood * (1 + 0.22 * skin.mottling * noise[..., 1])
    distance = np.hypot(x, y) / math.hypot(0.5, 0.5 * columns / rows)
    shadow = view.tilt[0] * x + view.tilt[1] * y + 0.35 * skin.vignette * distance**2
    if skin.vignette > 0.45:  # the edge of the tube
        shadow = shadow + 2.4 * _smooth((distance - 1.06 + 0.25 * skin.vignette) / 0.16)
    bare = np.log(np.array(_PAPER) * skin.light * view.exposure)
    density = [light - shadow - melanin * m - blood * b for light, m, b in zip(bare, _MELANIN, _BLOOD, strict=True)]
    return resized(np.stack(density, axis=-1).astype(np.float32), rows, columns)


def _lesion_density(lesion: Lesion, frame: Frame, density: Map) -> Map | None:
    """Take the lesion's absorption off ``density``, in place; return its white there, 0 to 1, if it has some.

    What is smooth is computed at half the resolution.
    """
    u, v = frame.grid()
    shape, low, mid = frame.smooth_noise(), frame.slow_noise(16.0, 0), frame.slow_noise(60.0, 1)
    stretch = np.float32(math.sqrt(lesion.elongation))
    # Distance from the middle, 1 at the border; noise bends the border and makes the halves unequal.
    round_d = np.asarray(cv2.magnitude(u / stretch, v * stretch), np.float32)
    d = round_d * (1 + (0.05 + 0.22 * lesion.asymmetry) * shape[0] + 0.05 * lesion.irregularity * mid[0])
    d += 0.15 * lesion.irregularity * shape[1] * _ramp(round_d)
    softness = np.maximum(lesion.softness * (1 + 0.6 * lesion.irregularity * low[1]), 0.05)
    inside = _smooth((1 - d) / softness + 0.5) * _ramp((1.8 - round_d) / 0.4)
    mottle = lesion.mottling * (0.26 * mid[1] + 0.24 * low[1] * lesion.asymmetry)
    pigment = lesion.melanin * np.maximum(1 + lesion.center * (0.55 - d) + mottle, 0.12)
    dark = _share(lesion.dark, low[2] + 0.35 * mid[2])
    blue = _share(lesion.blue, low[3] + 0.3 * mid[3] + 0.5 - 0.7 * d)
    white = 0.7 * inside * _share(lesion.white, -low[2] - 0.4 * mid[3] + 0.2 * mid[0])
    fading = inside * (1 - 0.75 * blue) * (1 - 0.7 * white)
    pigment = (pigment + 0.95 * dark) * fading
    # A faint redness surrounds every lesion.
    blood = lesion.blood * inside * (1 + 0.35 * lesion.mottling * mid[2]) + 0.05 * _ramp(1.5 - d)
    deep = (0.6 if lesion.lacunae else 0.95) * blue * inside
    colors = [pigment * m + blood * b + deep * g for m, b, g in zip(_MELANIN, _BLOOD, _DEEP, strict=True)]
    cv2.subtract(density, frame.enlarged(np.asarray(cv2.merge(colors), np.float32)), dst=density)

    if lesion.network:
        # The network thins out where blotches cover it, and shows best towards the border.
        gain = lesion.network * pigment * (0.45 + 0.55 * np.minimum(d, 1)) * (1 - 0.7 * dark)
        _absorb(density, (1.9 * frame.texture(honeycomb(), 0.75) - 0.75) * frame.enlarged(gain), _MELANIN)
    if lesion.dots:
        where = 1.5 * lesion.dots * fading * _ramp(0.6 + 0.8 * low[2] - 0.3 * d)
        _absorb(density, frame.texture(spots(), 0.75) * frame.enlarged(where), _MELANIN)
    if lesion.lacunae:
        where = lesion.lacunae * blood
        _absorb(density, (0.8 - 1.6 * frame.texture(honeycomb(), 0.21)) * frame.enlarged(where), _BLOOD)
    if lesion.vessels:
        where = 0.55 * lesion.vessels * np.minimum(1.2 - 0.4 * d, 1) * _ramp(2.2 - 1.4 * d)
        _absorb(density, frame.vessels() * frame.enlarged(where), _BLOOD)
    if lesion.scar:
        white = np.maximum(white, lesion.scar * np.exp(-((d / 0.42) ** 2)) * (0.8 + 0.25 * mid[3]) * inside)
    on_top = frame.enlarged(white) if lesion.white or lesion.scar else None
    if lesion.cysts:
        cover = frame.enlarged(inside)
        pale, openings = frame.cysts()
        _absorb(density, 0.9 * openings * cover, _MELANIN)
        pale *= 0.75 * cover
        on_top = pale if on_top is None else np.maximum(on_top, pale)
    return on_top


def _absorb(density: Map, amount: Map, color: tuple[float, float, float]) -> None:
    cv2.subtract(density, cv2.merge([amount * np.float32(part) for part in color]), dst=density)


def _lay_white(image: Picture, white: Map, exposure: float) -> None:
    """Blend the colour of scars over the picture, in place."""
    planes = [np.full(image.shape[:2], min(255, round(value * exposure)), np.uint8) for value in _SCAR]
    scar = cv2.merge(planes)
    white = _ramp(white)
    image[:] = cv2.blendLinear(scar, image, white, 1 - white)


def _draw_hairs(image: Picture, skin: Skin, seed: int, view: View) -> None:
    """Hairs lie over the lesion; each view has them elsewhere, but combed much the same way."""
    if not skin.hairs:
        return
    rng = random_state(view.seed, 19)
    comb = random_state(seed, 23).uniform(0, 2 * math.pi) + view.angle
    rows, columns = image.shape[:2]
    drawn = image.copy()
    tone = 225 * view.exposure * np.exp(-np.array(_MELANIN) * (1.0 + 1.4 * skin.hair_shade))
    for _ in range(skin.hairs):
        angle, bend = comb + rng.normal(0, 0.5), rng.normal(0, 0.7)
        length = rows * rng.uniform(0.25, 1.0)
        x, y = rng.uniform(-0.1, 1.1) * columns, rng.uniform(-0.1, 1.1) * rows
        points = []
        for _ in range(12):
            points.append((x, y))
            angle += bend / 12
            x, y = x + length / 12 * math.cos(angle), y + length / 12 * math.sin(angle)
        color = tuple(map(float, tone * rng.uniform(0.8, 1.25)))
        draw_curve(drawn, points, color, rows / 450 * rng.uniform(0.8, 2.4))
    cv2.addWeighted(drawn, 0.85, image, 0.15, 0, dst=image)


def _add_grain(image: Picture, rng: np.random.Generator) -> None:
    """Lay the fine relief of the skin and the noise of the sensor over the picture, in place."""
    top, left = rng.integers(0, GRAIN_SIDE, 2)
    texture = grain()[top:top + GRAIN_SIDE, left:left + GRAIN_SIDE]
    for y in range(0, image.shape[0], GRAIN_SIDE):
        for x in range(0, image.shape[1], GRAIN_SIDE):
            part = image[y:y + GRAIN_SIDE, x:x + GRAIN_SIDE]
            cv2.add(part, texture[:part.shape[0], :part.shape[1]], dst=part)
            cv2.subtract(part, np.full(4, GRAIN_LIFT), dst=part)


def _share(amount: float, field: Map) -> Map:
    """A soft mask that covers about ``amount`` of where a field of mean 0 and deviation 1 lies."""
    if amount <= 0:
        return np.zeros_like(field)
    return _smooth((field - 1.6 + 2.2 * min(amount, 1.0)) / 1.1) * np.float32(min(1.0, 0.45 + 1.2 * amount))


def _ramp(x: Map) -> Map:
    return np.clip(x, 0, 1)


def _smooth(x: Map) -> Map:
    x = np.clip(x, 0, 1)
    return x * x * (3 - 2 * x)
