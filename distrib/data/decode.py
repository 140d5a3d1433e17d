"""Encoded images of a shard to RGB pixels."""

from __future__ import annotations

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]

cv2.setNumThreads(0)  # the caller decides on threads; a pool inside each of them would fight over cores


def image_size(content: bytes, kind: str) -> tuple[int, int]:
    """(height, width) in pixels from the header alone. Raises ValueError."""
    if kind == "jpg":
        height, width, *_ = simplejpeg.decode_jpeg_header(content)
        return int(height), int(width)
    if kind != "png" or len(content) < 24 or not content.startswith(b"\x89PNG\r\n\x1a\n"):
        raise ValueError("not a PNG image")
    return int.from_bytes(content[20:24], "big"), int.from_bytes(content[16:20], "big")


def decode_rgb(content: bytes, kind: str, *, shrink: float = 1.0) -> Pixels:
    """Pixels as RGB, uint8 [H, W, 3]. Raises ValueError when the image is broken.

    With ``shrink`` of 2 or more the result may be smaller by up to that factor: a JPEG is decoded at a
    reduced scale (a fraction of the work), anything else is averaged down.
    """
    height, width = image_size(content, kind)
    # 64-bit float rounding must not push a bound above the size itself.
    min_height, min_width = int(height / max(shrink, 1.0)), int(width / max(shrink, 1.0))
    if kind == "jpg":
        if shrink < 2:
            return simplejpeg.decode_jpeg(content, colorspace="RGB")  # type: ignore[no-any-return]
        return simplejpeg.decode_jpeg(  # type: ignore[no-any-return]
            content, colorspace="RGB", min_height=max(min_height, 1), min_width=max(min_width, 1), min_factor=2
        )
    try:
        # Pixels as they are stored: the sizes of `image_size` are those before any EXIF orientation.
        flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
        image = cv2.imdecode(np.frombuffer(content, np.uint8), flags)
    except cv2.error as error:  # such as more pixels than OpenCV takes
        raise ValueError(f"the PNG is refused: {error.err}") from error
    if image is None:
        raise ValueError("the PNG data is broken")
    if shrink >= 2:
        size = (max(min_width, 1), max(min_height, 1))
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    return image  # type: ignore[return-value]
