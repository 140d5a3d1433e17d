"""Raw image files opened strictly: what decoders paper over, and what would exhaust the memory, is refused.

Used by `distrib.data.ingest` alone. Safe to call from many threads.
"""

from __future__ import annotations

import io
import threading
import warnings
import zlib

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from distrib.data.decode import Pixels

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
PNG = b"\x89PNG\r\n\x1a\n"
_ORIENTATION = 0x0112
# Pillow warns through the process-wide list of warning filters, which only one thread at a time may change.
_pillow_lock = threading.RLock()


class RefusedError(Exception):
    """Why an image is refused, as the end of a sentence that begins with its name; and the remedy."""

    def __init__(self, reason: str, remedy: str = "") -> None:
        super().__init__(reason)
        self.reason, self.remedy = reason, remedy


def check_png(raw: bytes) -> None:
    """That every chunk matches its checksum: decoders stop looking at the last pixel, some before, some behind it."""
    position = len(PNG)
    name = b""
    while name != b"IEND":
        length, name = int.from_bytes(raw[position:position + 4], "big"), raw[position + 4:position + 8]
        end = position + 8 + length
        if len(raw) < end + 4:
            raise RefusedError(f"is a damaged PNG: it is cut off at byte {len(raw)}")
        if zlib.crc32(memoryview(raw)[position + 4:end]) != int.from_bytes(raw[end:end + 4], "big"):
            raise RefusedError(f"is a damaged PNG: the chunk at byte {position} does not match its checksum")
        position = end + 4


def check_plain_png(raw: bytes) -> None:
    """That every decoder shows a PNG alike: not of 16 bits, turned, transparent or animated."""
    if raw[24:25] == b"\x10":
        raise RefusedError("is a PNG of 16 bits a channel")
    with _pillow_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with open_image(raw) as image:
            check_size(*image.size)
            check_side(*image.size)
            if image.has_transparency_data:
                raise RefusedError("is transparent in places")
            if getattr(image, "is_animated", False):
                raise RefusedError("is animated")
            if b"eXIf" in raw and exif_orientation(image) != 1:  # it decodes the image to look for EXIF at its end
                raise RefusedError(f"lies on its side: its EXIF orientation is {exif_orientation(image)}")


def check_size(width: int, height: int, max_pixels: int = MAX_PIXELS) -> None:
    """Before anything is allocated for the pixels."""
    if width < 1 or height < 1:
        raise RefusedError(f"says that it is {width}x{height} pixels large")
    if width * height > min(max_pixels, MAX_PIXELS):
        raise RefusedError(
            f"says that it is {width}x{height} pixels large, more than the {min(max_pixels, MAX_PIXELS) / 1e6:.4g} "
            "million accepted", "make it smaller if it is real; it may be made to exhaust the memory",
        )


def check_scans(raw: bytes) -> None:
    """Of a JPEG. In pixel data the marker can not stand; a preview in its header may add one or two."""
    if (scans := raw.count(b"\xff\xda")) > MAX_SCANS:
        raise RefusedError(f"is a JPEG of {scans} scans, more than the {MAX_SCANS} accepted",
                           "save it anew if it is real; it may be made to keep the processor busy")


def check_side(width: int, height: int) -> None:
    if max(width, height) > MAX_SIDE:
        raise RefusedError(f"is {width}x{height} pixels large; sides go up to {MAX_SIDE}", "give --resize, or crop it")


def read_jpeg_header(raw: bytes) -> tuple[str, int]:
    """(Pillow's mode, EXIF orientation) without decoding."""
    with _pillow_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with open_image(raw) as image:
            return image.mode, exif_orientation(image)


def jpeg_size(raw: bytes) -> tuple[int, int]:
    """(height, width) by the decoder's own reading, so that no second header can hide a bomb from the check."""
    try:
        height, width, *_ = simplejpeg.decode_jpeg_header(raw)
    except ValueError as error:
        raise RefusedError(f"is a damaged JPEG: {error}") from error
    return int(height), int(width)


def decode_jpeg(raw: bytes, colorspace: str, min_side: int = 0) -> Pixels:
    try:
        return simplejpeg.decode_jpeg(  # type: ignore[no-any-return]
            raw, colorspace=colorspace, min_height=min_side, min_width=min_side
        )
    except ValueError as error:
        raise RefusedError(f"is a damaged JPEG: {error}") from error


def beginning(raw: bytes) -> str:
    """The first bytes of a file in a message: as text where they are, else as hexadecimal numbers."""
    first = raw[:8]
    text = first.decode("latin-1")
    return f"'{text}'" if text.isascii() and text.isprintable() else f"the bytes {first.hex(' ')}"


def open_image(raw: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(raw), formats=_FORMATS)
    except UnidentifiedImageError:
        raise RefusedError(f"is not an image that can be read here: it begins with {beginning(raw)}",
                            f"save it as {_KNOWN}") from None
    except Image.DecompressionBombError:
        raise RefusedError(f"says that it has more than the {MAX_PIXELS / 1e6:.0f} million pixels accepted",
                            "make it smaller if it is real; it may be made to exhaust the memory") from None
    except Exception as error:  # a decoder faced with garbage raises almost anything
        raise RefusedError(f"can not be opened: {plain_reason(error)}") from error


def exif_orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # broken EXIF says nothing about orientation
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def decode_with_pillow(raw: bytes, max_pixels: int) -> tuple[Pixels, int]:
    """Pixels [H, W, 1 or 3] as stored, and the EXIF orientation still to be applied."""
    with _pillow_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with open_image(raw) as image:
            check_size(*image.size, max_pixels)
            try:
                # Not n_frames: counting the pages of a TIFF made for it takes hours.
                if getattr(image, "is_animated", False):
                    raise RefusedError("holds several frames or pages, not one image",
                                       "save the one you mean as an image of its own")
                image.load()
                orientation = exif_orientation(image)  # after load: Pillow has turned TIFFs itself by then
                pixels = _to_8_bits(image)
            except (RefusedError, MemoryError):
                raise
            except Exception as error:  # a decoder faced with garbage raises almost anything
                raise RefusedError(f"is a damaged {image.format} image: {plain_reason(error)}") from error
    return (pixels[:, :, np.newaxis] if pixels.ndim == 2 else pixels), orientation


def _to_8_bits(image: Image.Image) -> Pixels:
    """uint8 [H, W] grey or [H, W, 3] RGB."""
    mode = image.mode
    if mode.startswith("I;16") or (mode == "I" and image.format in ("PNG", "PPM")):
        values = np.asarray(image).astype(np.uint32)
        return ((values * 255 + 32767) // 65535).astype(np.uint8)
    if mode == "I":
        raise RefusedError("has 32-bit integer pixels, of which nobody knows what is white",
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
        raise RefusedError(f"has floating-point pixels from {low:g} to {high:g}, and only 0 to 1 have a known white",
                            "scale them to 0 to 1, or save it with 8 or 16 bits a channel")
    return np.rint(values * 255).astype(np.uint8)


def plain_reason(error: Exception) -> str:
    """A decoder's message as the end of a sentence."""
    text = str(error).strip().splitlines()
    return text[0] if text else type(error).__name__
