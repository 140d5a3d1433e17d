"""What happens to an image between the shard and the model: one decode, one resampling pass.

Both transforms compute an affine map from output pixels to source pixels, decode the source no larger
than that map needs, and resample once (bilinear).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from distrib.data.decode import Pixels, decode_rgb, image_size
from distrib.data.keyed import key_of, uniforms

_AUGMENT = 7


@dataclass(frozen=True)
class Window:
    """A rotated rectangle of the source: centre and size in source pixels, angle in radians."""

    center_x: float
    center_y: float
    width: float
    height: float
    angle: float = 0.0
    hflip: bool = False
    vflip: bool = False


def sample_window(content: bytes, kind: str, window: Window, side: int) -> Pixels:
    """Resample a window of the image to uint8 [side, side, 3] RGB. Raises ValueError if it is broken."""
    height, width = image_size(content, kind)
    image = decode_rgb(content, kind, shrink=min(window.width, window.height) / side)
    scale_y, scale_x = image.shape[0] / height, image.shape[1] / width
    # Unit vectors of the output in the source, per output pixel.
    step_x = (-1 if window.hflip else 1) * window.width / side
    step_y = (-1 if window.vflip else 1) * window.height / side
    cos, sin = math.cos(window.angle), math.sin(window.angle)
    matrix = np.array([[cos * step_x * scale_x, -sin * step_y * scale_x, 0.0],
                       [sin * step_x * scale_y, cos * step_y * scale_y, 0.0]])
    middle = (side - 1) / 2  # pixel centres: the middle of the output lies on the window's centre
    matrix[:, 2] = [window.center_x * scale_x - 0.5, window.center_y * scale_y - 0.5]
    matrix[:, 2] -= matrix[:, :2] @ [middle, middle]
    return cv2.warpAffine(  # type: ignore[return-value]
        image, matrix, (side, side), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_REFLECT_101
    )


@dataclass(frozen=True)
class EvalTransform:
    """The central square of the image, the same every time."""

    image_size: int
    eval_crop: float = 1.0

    def __call__(self, content: bytes, kind: str) -> Pixels:
        """uint8 [image_size, image_size, 3] RGB. Raises ValueError if the image is broken."""
        height, width = image_size(content, kind)
        side = min(height, width) * self.eval_crop
        return sample_window(content, kind, Window(width / 2, height / 2, side, side), self.image_size)


@dataclass(frozen=True)
class TrainTransform:
    """A random window of the image, keyed by (seed, epoch, sample).

    The crop's area and aspect are drawn as in Szegedy et al., "Going Deeper with Convolutions", 2015.
    """

    image_size: int
    seed: int
    min_area: float
    max_aspect: float
    hflip: bool
    vflip: bool
    rotate_degrees: float
    brightness: float
    contrast: float

    def __call__(self, content: bytes, kind: str, epoch: int, sample: int) -> Pixels:
        """uint8 [image_size, image_size, 3] RGB. Raises ValueError if the image is broken."""
        u = uniforms(key_of(_AUGMENT, self.seed, epoch, sample), 9)
        height, width = image_size(content, kind)
        area = height * width * (self.min_area + (1 - self.min_area) * u[0])
        aspect = math.exp((2 * u[1] - 1) * math.log(self.max_aspect))
        crop_w, crop_h = min(math.sqrt(area * aspect), width), min(math.sqrt(area / aspect), height)
        window = Window(
            crop_w / 2 + (width - crop_w) * u[2],
            crop_h / 2 + (height - crop_h) * u[3],
            crop_w,
            crop_h,
            angle=math.radians(self.rotate_degrees) * (2 * u[4] - 1),
            hflip=self.hflip and bool(u[5] < 0.5),
            vflip=self.vflip and bool(u[6] < 0.5),
        )
        pixels = sample_window(content, kind, window, self.image_size)
        if self.brightness or self.contrast:
            gain = 1 + self.contrast * (2 * u[7] - 1)
            pixels = cv2.LUT(pixels, _tone(gain, self.brightness * (2 * u[8] - 1)))  # type: ignore[assignment]
        return pixels


def _tone(gain: float, lift: float) -> NDArray[np.uint8]:
    """Table of 256 values: contrast about mid-grey, then brightness."""
    values = (np.arange(256) - 127.5) * gain + 127.5 + 255 * lift
    table: NDArray[np.uint8] = np.clip(np.rint(values), 0, 255).astype(np.uint8)
    return table
