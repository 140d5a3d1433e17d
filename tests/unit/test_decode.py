from __future__ import annotations

import io
import struct
import zlib

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from distrib.data.decode import Pixels, decode_rgb, image_size


def picture(height: int, width: int) -> Pixels:
    """Smooth, and different in every direction and channel."""
    y, x = np.mgrid[:height, :width].astype(np.float64)
    channels = [255 * x / max(width - 1, 1), 255 * y / max(height - 1, 1), 127 + 100 * np.sin(x / 9 + y / 7)]
    pixels: Pixels = np.rint(np.stack(channels, axis=2)).astype(np.uint8)
    return pixels


def encoded(pixels: Pixels, kind: str) -> bytes:
    with io.BytesIO() as file:
        Image.fromarray(pixels).save(file, "JPEG" if kind == "jpg" else "PNG", quality=95)
        return file.getvalue()


def test_png_pixels_are_exact_and_rgb() -> None:
    pixels = picture(17, 31)
    np.testing.assert_array_equal(decode_rgb(encoded(pixels, "png"), "png"), pixels)


def test_jpeg_pixels_are_those_of_another_decoder() -> None:
    content = encoded(picture(33, 47), "jpg")
    with Image.open(io.BytesIO(content)) as image:
        theirs = np.asarray(image.convert("RGB")).astype(int)
    ours = decode_rgb(content, "jpg")
    assert ours.dtype == np.uint8
    assert np.abs(ours.astype(int) - theirs).max() <= 2


@pytest.mark.parametrize("mode", ["L", "P", "LA", "RGBA", "1"])
def test_every_png_mode_gives_three_channels(mode: str) -> None:
    image = Image.fromarray(picture(9, 14)).convert(mode)
    with io.BytesIO() as file:
        image.save(file, "PNG")
        decoded = decode_rgb(file.getvalue(), "png")
    assert decoded.shape == (9, 14, 3)
    if mode in ("L", "1"):
        expected = np.asarray(image.convert("L"))
        np.testing.assert_array_equal(decoded, np.repeat(expected[:, :, None], 3, axis=2))


@settings(max_examples=60)
@given(height=st.integers(1, 90), width=st.integers(1, 90), kind=st.sampled_from(["jpg", "png"]),
       shrink=st.floats(0.3, 40))
def test_a_shrunk_image_is_never_smaller_than_asked(height: int, width: int, kind: str, shrink: float) -> None:
    content = encoded(picture(height, width), kind)
    assert image_size(content, kind) == (height, width)
    decoded = decode_rgb(content, kind, shrink=shrink)
    if shrink < 2:
        assert decoded.shape == (height, width, 3)
    assert decoded.shape[0] >= max(1, int(height / max(shrink, 1)))
    assert decoded.shape[1] >= max(1, int(width / max(shrink, 1)))
    assert decoded.shape[0] <= height
    assert decoded.shape[1] <= width


@pytest.mark.parametrize("kind", ["jpg", "png"])
def test_a_shrunk_image_shows_the_same_and_is_really_smaller(kind: str) -> None:
    pixels = picture(160, 240)
    decoded = decode_rgb(encoded(pixels, kind), kind, shrink=4)
    assert decoded.shape == (40, 60, 3)
    blocks = pixels.reshape(40, 4, 60, 4, 3).mean((1, 3))
    assert np.abs(decoded - blocks).max() <= 6


@pytest.mark.parametrize("kind", ["jpg", "png"])
def test_exif_does_not_turn_the_image_against_its_header(kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    with io.BytesIO() as file:
        Image.fromarray(picture(8, 20)).save(file, "JPEG" if kind == "jpg" else "PNG", exif=exif)
        content = file.getvalue()
    assert image_size(content, kind) == (8, 20)
    assert decode_rgb(content, kind).shape == (8, 20, 3)


def huge_png() -> bytes:
    """A header of 10 gigapixels over no pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    parts = (header, b"IDAT" + zlib.compress(b""), b"IEND")
    chunks = (struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part)) for part in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


PNG, JPG = encoded(picture(40, 40), "png"), encoded(picture(40, 40), "jpg")


@pytest.mark.parametrize(("content", "kind"), [
    (b"", "jpg"), (b"", "png"), (b"no image" * 20, "jpg"), (b"no image" * 20, "png"), (PNG, "jpg"), (JPG, "png"),
    (JPG[: len(JPG) // 2], "jpg"), (PNG[: len(PNG) // 2], "png"), (PNG[:30], "png"), (JPG[:10], "jpg"),
    (huge_png(), "png"),
])
@pytest.mark.parametrize("shrink", [1.0, 3.0])
def test_broken_images_are_value_errors(content: bytes, kind: str, shrink: float) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        decode_rgb(content, kind, shrink=shrink)


def test_opencv_keeps_to_the_callers_thread() -> None:
    assert cv2.getNumThreads() <= 1
