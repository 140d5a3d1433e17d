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
import threading
import warnings
import zlib
from dataclasses import dataclass
from typing import Annotated, Literal

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from pydantic import BaseModel, ConfigDict, Field

from distrib.data.decode import Pixels, decode_rgb
from distrib.errors import ImageError

MAX_PIXELS = 178_956_970
"""Largest width times height of a source: Pillow's own limit for a decompression bomb (512 MiB of RGB)."""
MAX_SIDE = 32_766
"""Largest width or height of a canonical image: what OpenCV can resample."""
MAX_SCANS = 100
"""Most passes over the pixels that a JPEG may ask for. Encoders make about ten; each costs as much as the image is
large, however few bytes it takes, so thousands would keep a processor busy for minutes."""

# Not EPS, PDF, WMF and the like: those start other programs.
_FORMATS = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "JPEG2000")
_KNOWN = "JPEG, PNG, GIF, BMP, TIFF, WebP, PNM or JPEG 2000"
_PNG = b"\x89PNG\r\n\x1a\n"
_ORIENTATION = 0x0112
# Pillow warns through the process-wide list of warning filters, which only one thread at a time may change.
_pillow_lock = threading.RLock()


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


class _RefusedError(Exception):
    """Why an image is refused, as the end of a sentence that begins with its name; and the remedy."""

    def __init__(self, reason: str, remedy: str = "") -> None:
        super().__init__(reason)
        self.reason, self.remedy = reason, remedy


def ingest(raw: bytes, name: str, options: IngestOptions, max_pixels: int = MAX_PIXELS) -> Canonical:
    """Decode a raw image file once and make it canonical. Raises ImageError, whose fact begins with ``name``.

    ``max_pixels`` refuses more sources than `MAX_PIXELS` does, before anything is allocated for their pixels.
    """
    try:
        return _ingest(raw, options, max_pixels)
    except _RefusedError as error:
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
    except _RefusedError as error:
        remedy = error.remedy or "have `distrib prepare` read the original images, or leave it out"
        raise ImageError(f"{name} {error.reason}", "it was not used", remedy) from error


def _decode_canonical(raw: bytes) -> tuple[Literal["jpg", "png"], Pixels]:
    if raw.startswith(b"\xff\xd8"):
        mode, orientation = _read_jpeg_header(raw)
        height, width = _jpeg_size(raw)
        _check_size(width, height)
        _check_scans(raw)
        _check_side(width, height)
        if mode not in ("L", "RGB"):
            raise _RefusedError(f"is a JPEG of colour mode {mode}, not RGB or grey")
        if orientation != 1:
            raise _RefusedError(f"lies on its side: its EXIF orientation is {orientation}")
        return "jpg", _decode_jpeg(raw, "GRAY" if mode == "L" else "RGB")
    if not raw.startswith(_PNG):
        raise _RefusedError(f"is neither JPEG nor PNG: it begins with {raw[:8]!r}")
    _check_png(raw)
    if raw[24:25] == b"\x10":
        raise _RefusedError("is a PNG of 16 bits a channel")
    with _pillow_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with _open(raw) as image:
            _check_size(*image.size)
            _check_side(*image.size)
            if image.has_transparency_data:
                raise _RefusedError("is transparent in places")
            if getattr(image, "is_animated", False):
                raise _RefusedError("is animated")
            if b"eXIf" in raw and _orientation(image) != 1:  # it decodes the image to look for EXIF at its end
                raise _RefusedError(f"lies on its side: its EXIF orientation is {_orientation(image)}")
    try:
        return "png", decode_rgb(raw, "png")
    except (ValueError, cv2.error) as error:
        raise _RefusedError(f"is a damaged PNG: {_plain(error)}") from error


def _check_png(raw: bytes) -> None:
    """That every chunk matches its checksum: decoders stop looking at the last pixel, some before, some behind it."""
    position = len(_PNG)
    name = b""
    while name != b"IEND":
        length, name = int.from_bytes(raw[position:position + 4], "big"), raw[position + 4:position + 8]
        end = position + 8 + length
        if len(raw) < end + 4:
            raise _RefusedError(f"is a damaged PNG: it is cut off at byte {len(raw)}")
        if zlib.crc32(memoryview(raw)[position + 4:end]) != int.from_bytes(raw[end:end + 4], "big"):
            raise _RefusedError(f"is a damaged PNG: the chunk at byte {position} does not match its checksum")
        position = end + 4


def _ingest(raw: bytes, options: IngestOptions, max_pixels: int) -> Canonical:
    if not raw:
        raise _RefusedError("is empty (0 bytes)")
    if raw.startswith(b"\xff\xd8"):
        mode, orientation = _read_jpeg_header(raw)
        height, width = _jpeg_size(raw)
        _check_size(width, height, max_pixels)
        _check_scans(raw)
        if mode in ("L", "RGB") and orientation == 1 and not _shrinks(width, height, options):
            _check_side(width, height)
            pixels = _decode_jpeg(raw, "GRAY" if mode == "L" else "RGB")
            return Canonical(raw, "jpg", width, height, width, height, pixels)
        pixels = _jpeg_pixels(raw, mode, (width, height), options)
    else:
        if raw.startswith(_PNG):
            _check_png(raw)
        pixels, orientation = _decode_with_pillow(raw, max_pixels)
        height, width = pixels.shape[:2]
    pixels = _upright(_resized(pixels, _target_size(width, height, options)), orientation)
    if orientation >= 5:
        width, height = height, width
    _check_side(pixels.shape[1], pixels.shape[0])
    content = _encode(pixels, options)
    return Canonical(content, options.format, pixels.shape[1], pixels.shape[0], width, height, pixels)


def _check_size(width: int, height: int, max_pixels: int = MAX_PIXELS) -> None:
    """Before anything is allocated for the pixels."""
    if width < 1 or height < 1:
        raise _RefusedError(f"says that it is {width}x{height} pixels large")
    if width * height > min(max_pixels, MAX_PIXELS):
        raise _RefusedError(
            f"says that it is {width}x{height} pixels large, more than the {min(max_pixels, MAX_PIXELS) / 1e6:.4g} "
            "million accepted", "make it smaller if it is real; it may be made to exhaust the memory",
        )


def _check_scans(raw: bytes) -> None:
    """Of a JPEG. In pixel data the marker can not stand; a preview in its header may add one or two."""
    if (scans := raw.count(b"\xff\xda")) > MAX_SCANS:
        raise _RefusedError(f"is a JPEG of {scans} scans, more than the {MAX_SCANS} accepted",
                            "save it anew if it is real; it may be made to keep the processor busy")


def _check_side(width: int, height: int) -> None:
    if max(width, height) > MAX_SIDE:
        raise _RefusedError(f"is {width}x{height} pixels large; sides go up to {MAX_SIDE}", "give --resize, or crop it")


def _shrinks(width: int, height: int, options: IngestOptions) -> bool:
    return options.resize is not None and min(width, height) > options.resize


def _target_size(width: int, height: int, options: IngestOptions) -> tuple[int, int]:
    """(width, height) after resizing."""
    if options.resize is None or min(width, height) <= options.resize:
        return width, height
    shorter = min(width, height)
    return tuple(max(1, (side * options.resize * 2 + shorter) // (2 * shorter)) for side in (width, height))  # type: ignore[return-value]


def _read_jpeg_header(raw: bytes) -> tuple[str, int]:
    """(Pillow's mode, EXIF orientation) without decoding."""
    with _pillow_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with _open(raw) as image:
            return image.mode, _orientation(image)


def _jpeg_size(raw: bytes) -> tuple[int, int]:
    """(height, width) by the decoder's own reading, so that no second header can hide a bomb from the check."""
    try:
        height, width, *_ = simplejpeg.decode_jpeg_header(raw)
    except ValueError as error:
        raise _RefusedError(f"is a damaged JPEG: {error}") from error
    return int(height), int(width)


def _decode_jpeg(raw: bytes, colorspace: str, min_side: int = 0) -> Pixels:
    try:
        return simplejpeg.decode_jpeg(  # type: ignore[no-any-return]
            raw, colorspace=colorspace, min_height=min_side, min_width=min_side
        )
    except ValueError as error:
        raise _RefusedError(f"is a damaged JPEG: {error}") from error


def _jpeg_pixels(raw: bytes, mode: str, size: tuple[int, int], options: IngestOptions) -> Pixels:
    """Pixels of a JPEG that is to be changed. Much too large ones are decoded at a reduced scale."""
    # Twice the target is left for the resampling filter, so that it decides the quality, not the DCT.
    min_side = 2 * options.resize if options.resize and min(size) >= 4 * options.resize else 0
    if mode == "CMYK":
        cmyk = _decode_jpeg(raw, "CMYK", min_side)
        # JPEGs hold CMYK inverted, as Adobe writes it: full ink is 0.
        image = Image.frombytes("CMYK", (cmyk.shape[1], cmyk.shape[0]), cmyk.tobytes(), "raw", "CMYK;I")
        return np.array(image.convert("RGB"))
    if mode not in ("L", "RGB"):
        raise _RefusedError(f"is a JPEG of the unknown colour mode {mode!r}")
    return _decode_jpeg(raw, "GRAY" if mode == "L" else "RGB", min_side)


def _open(raw: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(raw), formats=_FORMATS)
    except UnidentifiedImageError:
        raise _RefusedError(f"is not an image that can be read here: it begins with {raw[:8]!r}",
                            f"save it as {_KNOWN}") from None
    except Image.DecompressionBombError:
        raise _RefusedError(f"says that it has more than the {MAX_PIXELS / 1e6:.0f} million pixels accepted",
                            "make it smaller if it is real; it may be made to exhaust the memory") from None
    except Exception as error:  # a decoder faced with garbage raises almost anything
        raise _RefusedError(f"can not be opened: {_plain(error)}") from error


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # broken EXIF says nothing about orientation
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _decode_with_pillow(raw: bytes, max_pixels: int) -> tuple[Pixels, int]:
    """Pixels [H, W, 1 or 3] as stored, and the EXIF orientation still to be applied."""
    with _pillow_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with _open(raw) as image:
            _check_size(*image.size, max_pixels)
            try:
                # Not n_frames: counting the pages of a TIFF made for it takes hours.
                if getattr(image, "is_animated", False):
                    raise _RefusedError("holds several frames or pages, not one image",
                                        "save the one you mean as an image of its own")
                image.load()
                orientation = _orientation(image)  # after load: Pillow has turned TIFFs itself by then
                pixels = _to_8_bits(image)
            except (_RefusedError, MemoryError):
                raise
            except Exception as error:  # a decoder faced with garbage raises almost anything
                raise _RefusedError(f"is a damaged {image.format} image: {_plain(error)}") from error
    return (pixels[:, :, np.newaxis] if pixels.ndim == 2 else pixels), orientation


def _to_8_bits(image: Image.Image) -> Pixels:
    """uint8 [H, W] grey or [H, W, 3] RGB."""
    mode = image.mode
    if mode.startswith("I;16") or (mode == "I" and image.format in ("PNG", "PPM")):
        values = np.asarray(image).astype(np.uint32)
        return ((values * 255 + 32767) // 65535).astype(np.uint8)
    if mode == "I":
        raise _RefusedError("has 32-bit integer pixels, of which nobody knows what is white",
                            "save it with 8 or 16 bits a channel")
    if mode == "F":
        return _float_to_8_bits(np.asarray(image))
    if image.has_transparency_data:
        over_white = Image.new("RGBA", image.size, "white")
        over_white.alpha_composite(image.convert("RGBA"))
        return np.array(over_white.getchannel(0) if mode in ("1", "L", "LA", "La") else over_white.convert("RGB"))
    return np.array(image.convert("L" if mode in ("1", "L") else "RGB"))


def _float_to_8_bits(values: NDArray[np.float32]) -> Pixels:
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= 1):  # also true of NaN
        raise _RefusedError(f"has floating-point pixels from {low:g} to {high:g}, and only 0 to 1 have a known white",
                            "scale them to 0 to 1, or save it with 8 or 16 bits a channel")
    return np.rint(values * 255).astype(np.uint8)


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


def _plain(error: Exception) -> str:
    """A decoder's message as the end of a sentence."""
    text = str(error).strip().splitlines()
    return text[0] if text else type(error).__name__
