"""Raw image files to canonical images: the one path that pixels take, in `prepare` and in `predict`.

Whatever a file holds becomes 8-bit RGB or grey, upright, in a JPEG or PNG that every reader decodes alike.
A model sees at inference the very bytes it was trained on, because both come out of `ingest`.

What is decided here, once:

- EXIF orientation is applied. EXIF that can not be parsed counts as upright, as in browsers.
- A JPEG of 8-bit RGB or grey that needs no turning and no resizing passes byte for byte, whatever
  ``format`` says. A strict decoder has then gone through all of it: files cut off and files with
  bytes that libjpeg would paper over are refused.
- Alpha and transparent colours lie over white. ICC profiles are not applied; CMYK is converted plainly.
- 16-bit values are divided by 257: the range of the type, not of the image. Floating-point values must
  lie between 0 and 1. 32-bit integers have no known white, and are refused.
- An animation or a file of several pages is refused: it is not one image. A phone's multi-picture
  JPEG counts as its first picture.
- From 1x1 up to `MAX_PIXELS` in the source, and sides up to `MAX_SIDE` in the result.
- ``resize`` is the shorter side in pixels; smaller images stay as they are.

Imports nothing of training. Safe to call from many threads.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Annotated, Literal

import cv2
import numpy as np
import simplejpeg
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field

from distrib.data.decode import Pixels, decode_rgb
from distrib.data.raw_image import (
    MAX_PIXELS,
    MAX_SIDE,
    PNG,
    RefusedError,
    beginning,
    check_plain_png,
    check_png,
    check_scans,
    check_side,
    check_size,
    decode_jpeg,
    decode_with_pillow,
    jpeg_size,
    plain_reason,
    read_jpeg_header,
)
from distrib.errors import ImageError


class IngestOptions(BaseModel):
    """What decides the pixels; kept in the manifest as ``preparation["ingest"]`` and in every bundle."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    resize: Annotated[int, Field(ge=1, le=MAX_SIDE)] | None = None
    """Shorter side in pixels; None keeps the size. Never enlarges."""
    format: Literal["jpg", "png"] = "jpg"
    """How images are encoded that do not pass byte for byte; png loses nothing."""
    quality: Annotated[int, Field(ge=1, le=100)] = 95
    """Quality of the JPEGs written (4:4:4, no chroma subsampling)."""


@dataclass(frozen=True)
class Canonical:
    """One image as it stands in a shard."""

    content: bytes
    """The encoded image."""
    kind: Literal["jpg", "png"]
    width: int
    height: int
    source_width: int
    """Size of the upright source, before resizing."""
    source_height: int
    pixels: Pixels
    """What was encoded, uint8 [height, width, 3] RGB or [height, width, 1] grey."""


def ingest(raw: bytes, name: str, options: IngestOptions, max_pixels: int = MAX_PIXELS) -> Canonical:
    """Decode a raw image file once and make it canonical. Raises ImageError, whose fact begins with ``name``.

    ``max_pixels`` refuses more sources than `MAX_PIXELS` does, before anything is allocated for their pixels.
    """
    try:
        return _ingest(raw, options, max_pixels)
    except RefusedError as error:
        remedy = error.remedy or "replace the file, or leave the image out"
        raise ImageError(f"{name} {error.reason}", "it was not used", remedy) from error
    except MemoryError as error:
        raise ImageError(f"{name} does not fit into memory", "it was not used", "make the image smaller") from error


def decode_canonical(raw: bytes, name: str) -> tuple[Literal["jpg", "png"], Pixels]:
    """(kind, pixels uint8 [H, W, 1 or 3]) of an image that others encoded and that goes into training as it is.

    Raises ImageError for a broken image and for one that `distrib.data.decode` would show otherwise than
    `ingest` would: turned by EXIF, CMYK, transparent, animated, of 16 bits.
    """
    try:
        return _decode_canonical(raw)
    except RefusedError as error:
        remedy = error.remedy or "have `distrib prepare` read the original images, or leave it out"
        raise ImageError(f"{name} {error.reason}", "it was not used", remedy) from error


def _decode_canonical(raw: bytes) -> tuple[Literal["jpg", "png"], Pixels]:
    if raw.startswith(b"\xff\xd8"):
        mode, orientation = read_jpeg_header(raw)
        height, width = jpeg_size(raw)
        check_size(width, height)
        check_scans(raw)
        check_side(width, height)
        if mode not in ("L", "RGB"):
            raise RefusedError(f"is a JPEG of colour mode {mode}, not RGB or grey")
        if orientation != 1:
            raise RefusedError(f"lies on its side: its EXIF orientation is {orientation}")
        return "jpg", decode_jpeg(raw, "GRAY" if mode == "L" else "RGB")
    if not raw.startswith(PNG):
        raise RefusedError(f"is neither JPEG nor PNG: it begins with {beginning(raw)}")
    check_png(raw)
    check_plain_png(raw)
    try:
        return "png", decode_rgb(raw, "png")
    except (ValueError, cv2.error) as error:
        raise RefusedError(f"is a damaged PNG: {plain_reason(error)}") from error


def _ingest(raw: bytes, options: IngestOptions, max_pixels: int) -> Canonical:
    if not raw:
        raise RefusedError("is empty (0 bytes)")
    if raw.startswith(b"\xff\xd8"):
        mode, orientation = read_jpeg_header(raw)
        height, width = jpeg_size(raw)
        check_size(width, height, max_pixels)
        check_scans(raw)
        if mode in ("L", "RGB") and orientation == 1 and not _shrinks(width, height, options):
            check_side(width, height)
            pixels = decode_jpeg(raw, "GRAY" if mode == "L" else "RGB")
            return Canonical(raw, "jpg", width, height, width, height, pixels)
        pixels = _jpeg_pixels(raw, mode, (width, height), options)
    else:
        if raw.startswith(PNG):
            check_png(raw)
        pixels, orientation = decode_with_pillow(raw, max_pixels)
        height, width = pixels.shape[:2]
    pixels = _upright(_resized(pixels, _target_size(width, height, options)), orientation)
    if orientation >= 5:
        width, height = height, width
    check_side(pixels.shape[1], pixels.shape[0])
    content = _encode(pixels, options)
    return Canonical(content, options.format, pixels.shape[1], pixels.shape[0], width, height, pixels)


def _shrinks(width: int, height: int, options: IngestOptions) -> bool:
    return options.resize is not None and min(width, height) > options.resize


def _target_size(width: int, height: int, options: IngestOptions) -> tuple[int, int]:
    """(width, height) after resizing."""
    if options.resize is None or min(width, height) <= options.resize:
        return width, height
    shorter = min(width, height)
    return tuple(max(1, (side * options.resize * 2 + shorter) // (2 * shorter)) for side in (width, height))  # type: ignore[return-value]


def _jpeg_pixels(raw: bytes, mode: str, size: tuple[int, int], options: IngestOptions) -> Pixels:
    """Pixels of a JPEG that is to be changed. Much too large ones are decoded at a reduced scale."""
    # Twice the target is left for the resampling filter, so that it decides the quality, not the DCT.
    min_side = 2 * options.resize if options.resize and min(size) >= 4 * options.resize else 0
    if mode == "CMYK":
        cmyk = decode_jpeg(raw, "CMYK", min_side)
        # JPEGs hold CMYK inverted, as Adobe writes it: full ink is 0.
        image = Image.frombytes("CMYK", (cmyk.shape[1], cmyk.shape[0]), cmyk.tobytes(), "raw", "CMYK;I")
        return np.array(image.convert("RGB"))
    if mode not in ("L", "RGB"):
        raise RefusedError(f"is a JPEG of the unknown colour mode {mode!r}")
    return decode_jpeg(raw, "GRAY" if mode == "L" else "RGB", min_side)


def _resized(pixels: Pixels, size: tuple[int, int]) -> Pixels:
    """Lanczos in Pillow's fixed-point arithmetic: antialiased, and the same bits on every processor."""
    if (pixels.shape[1], pixels.shape[0]) == size:
        return pixels
    image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    resized = np.array(image.resize(size, Image.Resampling.LANCZOS))
    return resized[:, :, np.newaxis] if resized.ndim == 2 else resized


def _upright(pixels: Pixels, orientation: int) -> Pixels:
    """Undo an EXIF orientation (1 to 8); contiguous."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)


def _encode(pixels: Pixels, options: IngestOptions) -> bytes:
    grey = pixels.shape[2] == 1
    if options.format == "jpg":
        colorspace, subsampling = ("GRAY", "Gray") if grey else ("RGB", "444")
        return simplejpeg.encode_jpeg(pixels, options.quality, colorspace, subsampling)  # type: ignore[no-any-return]
    with io.BytesIO() as file:
        Image.fromarray(pixels[:, :, 0] if grey else pixels).save(file, "PNG", compress_level=6)
        return file.getvalue()
