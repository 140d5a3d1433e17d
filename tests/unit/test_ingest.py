"""Raw files become canonical images: every kind right, everything else refused with a reason."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from distrib.data.decode import decode_rgb
from distrib.data.ingest import Canonical, IngestOptions, decode_canonical, ingest
from distrib.data.raw_image import MAX_PIXELS, MAX_SIDE
from distrib.errors import ImageError

PNG = IngestOptions(format="png")
JPG = IngestOptions()


def scene(height: int = 23, width: int = 37) -> NDArray[np.uint8]:
    """A smooth picture without any symmetry, RGB."""
    y, x = np.mgrid[:height, :width].astype(np.float64)
    channels = [255 * x / width, 255 * y / height, 127 + 120 * np.sin(x / 5 + y / 11)]
    pixels: NDArray[np.uint8] = np.rint(np.stack(channels, axis=2)).astype(np.uint8)
    return pixels


def encoded(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    with io.BytesIO() as file:
        image.save(file, format, **options)
        return file.getvalue()


def shown(canonical: Canonical) -> NDArray[np.uint8]:
    """What the stream sees of it, RGB."""
    return decode_rgb(canonical.content, canonical.kind)


def refusal(raw: bytes, options: IngestOptions = JPG) -> str:
    with pytest.raises(ImageError) as caught:
        ingest(raw, "photo.jpg", options)
    assert str(caught.value).startswith("photo.jpg ")
    assert caught.value.remedy
    return caught.value.fact


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("progressive", [False, True])
def test_a_good_jpeg_passes_byte_for_byte(mode: str, progressive: bool) -> None:
    raw = encoded(Image.fromarray(scene()).convert(mode), "JPEG", quality=80, progressive=progressive)
    for options in (JPG, PNG, IngestOptions(resize=23)):
        canonical = ingest(raw, "photo.jpg", options)
        assert canonical.content == raw
        assert (canonical.kind, canonical.width, canonical.height) == ("jpg", 37, 23)
        assert canonical.pixels.shape == (23, 37, 3 if mode == "RGB" else 1)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_orientation_is_applied(orientation: int, format: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    quality: dict[str, dict[str, Any]] = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}
    upright = scene()
    # What a camera did that a viewer has to undo (Exif 2.3, table 6).
    undo = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
            5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
            8: Image.Transpose.ROTATE_270}
    stored = Image.fromarray(upright)
    if orientation > 1:
        stored = stored.transpose(undo[orientation])
    canonical = ingest(encoded(stored, format, exif=exif, **quality.get(format, {})), "photo.jpg", PNG)
    assert (canonical.source_width, canonical.source_height) == (37, 23)
    assert (canonical.width, canonical.height) == (37, 23)
    difference = np.abs(shown(canonical).astype(int) - upright)
    assert difference.max() <= (4 if format == "JPEG" else 0)
    again = ingest(canonical.content, "again", PNG)
    assert np.array_equal(again.pixels, canonical.pixels), "the result must not be turned a second time"


@pytest.mark.parametrize("exif", [b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0"])
def test_broken_exif_counts_as_upright(exif: bytes) -> None:
    raw = encoded(Image.fromarray(scene()), "JPEG", exif=exif)
    assert ingest(raw, "photo.jpg", JPG).content == raw


def over_white(values: NDArray[np.uint8], alpha: NDArray[np.uint8]) -> NDArray[np.float64]:
    part = alpha.astype(np.float64)[:, :, None] / 255
    return values * part + 255 * (1 - part)


def test_every_mode_becomes_rgb_or_grey() -> None:
    colours = scene()
    grey = colours[:, :, 0]
    alpha = np.linspace(0, 255, grey.size).reshape(grey.shape).astype(np.uint8)
    image = Image.fromarray(colours)
    palette = image.quantize(64)
    see_through = palette.copy()
    see_through.info["transparency"] = 3
    palette_rgb = np.array(palette.convert("RGB"))
    behind = np.where((np.array(palette) == 3)[:, :, None], 255, palette_rgb)
    bilevel = Image.fromarray(np.where(grey > 99, 255, 0).astype(np.uint8)).convert("1")
    cases: list[tuple[str, bytes, NDArray[Any], int]] = [
        ("L", encoded(Image.fromarray(grey)), grey, 1),
        ("RGB", encoded(image), colours, 3),
        ("1", encoded(bilevel), np.array(bilevel.convert("L")), 1),
        ("LA", encoded(Image.merge("LA", (Image.fromarray(grey), Image.fromarray(alpha)))),
         over_white(grey[:, :, None], alpha)[:, :, 0], 1),
        ("RGBA", encoded(Image.merge("RGBA", (*image.split(), Image.fromarray(alpha)))), over_white(colours, alpha), 3),
        ("P", encoded(palette), palette_rgb, 3),
        ("P with transparency", encoded(see_through, transparency=3), behind, 3),
        ("L with transparency", encoded(Image.fromarray(grey), transparency=int(grey[0, 0])),
         np.where(grey == grey[0, 0], 255, grey), 1),
        ("GIF", encoded(palette, "GIF"), palette_rgb, 3),
        ("BMP", encoded(image, "BMP"), colours, 3),
        ("PPM", encoded(image, "PPM"), colours, 3),
        ("TIFF", encoded(image, "TIFF", compression="tiff_lzw"), colours, 3),
        ("WebP", encoded(image, "WEBP", lossless=True), colours, 3),
        ("JPEG 2000", encoded(image, "JPEG2000", irreversible=False), colours, 3),
        ("CMYK TIFF", encoded(image.convert("CMYK"), "TIFF"), colours, 3),
        ("float", encoded(Image.fromarray((grey / 255).astype(np.float32)), "TIFF"), grey, 1),
    ]
    for name, raw, expected, channels in cases:
        canonical = ingest(raw, name, PNG)
        assert canonical.pixels.shape == (23, 37, channels), name
        pixels = canonical.pixels if channels == 3 else canonical.pixels[:, :, 0]
        assert np.abs(pixels.astype(float) - expected).max() <= 1.01, name
        rgb = canonical.pixels if channels == 3 else np.repeat(canonical.pixels, 3, axis=2)
        assert np.array_equal(shown(canonical), rgb), f"{name}: the stream sees other pixels than were encoded"


def test_palette_with_alpha_per_entry_lies_over_white() -> None:
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 100, 50, 0] + [0] * 762)
    raw = encoded(palette, transparency=bytes([255, 128]))
    expected = over_white(np.full((4, 4, 3), [100, 50, 0], np.uint8), np.full((4, 4), 128, np.uint8))
    assert np.abs(ingest(raw, "PA", PNG).pixels - expected).max() <= 1


def test_16_bits_are_scaled_by_the_range_of_the_type() -> None:
    values = np.arange(0, 65536, 16, dtype=np.uint16).reshape(64, 64)
    for format in ("PNG", "TIFF"):
        pixels = ingest(encoded(Image.fromarray(values), format), "deep", PNG).pixels[:, :, 0]
        assert np.abs(pixels - values / 257).max() <= 0.5, format
    header = b"P5 64 64 65535\n"
    pixels = ingest(header + values.astype(">u2").tobytes(), "deep.pgm", PNG).pixels[:, :, 0]
    assert np.abs(pixels - values / 257).max() <= 0.5


def test_cmyk_jpeg_is_the_same_as_pillow_shows() -> None:
    raw = encoded(Image.fromarray(scene()).convert("CMYK"), "JPEG", quality=95)
    expected = np.array(Image.open(io.BytesIO(raw)).convert("RGB"))
    canonical = ingest(raw, "print.jpg", PNG)
    assert np.abs(canonical.pixels.astype(int) - expected).max() <= 1


@settings(max_examples=40)
@given(height=st.integers(1, 90), width=st.integers(1, 90), resize=st.integers(1, 60), jpeg=st.booleans())
def test_resize_sets_the_shorter_side_and_never_enlarges(height: int, width: int, resize: int, jpeg: bool) -> None:
    raw = encoded(Image.fromarray(scene(height, width)), "JPEG" if jpeg else "PNG")
    canonical = ingest(raw, "photo", IngestOptions(resize=resize))
    shorter = min(height, width)
    assert min(canonical.width, canonical.height) == min(resize, shorter)
    scale = min(1.0, resize / shorter)
    assert abs(canonical.width - width * scale) <= 0.5
    assert abs(canonical.height - height * scale) <= 0.5
    assert (canonical.source_width, canonical.source_height) == (width, height)
    assert shown(canonical).shape == (canonical.height, canonical.width, 3)


def test_resizing_averages_instead_of_skipping_pixels() -> None:
    stripes = np.zeros((256, 256), np.uint8)
    stripes[:, ::2] = 255
    for format in ("PNG", "JPEG"):
        pixels = ingest(encoded(Image.fromarray(stripes), format, **({"quality": 100} if format == "JPEG" else {})),
                        "stripes", IngestOptions(resize=32, format="png")).pixels
        assert np.abs(pixels.astype(int) - 127).max() <= 8, format


def test_the_same_input_gives_the_same_bytes() -> None:
    raw = encoded(Image.fromarray(scene(300, 400)), "PNG")
    options = IngestOptions(resize=64)
    assert ingest(raw, "a", options).content == ingest(raw, "b", options).content


def test_one_pixel_is_an_image() -> None:
    for format in ("PNG", "JPEG", "GIF", "BMP"):
        canonical = ingest(encoded(Image.new("RGB", (1, 1), (200, 10, 10)), format), "dot", JPG)
        assert shown(canonical).shape == (1, 1, 3)


def png_header(width: int, height: int) -> bytes:
    """A PNG that announces a size and holds next to nothing."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


def jpeg_header(width: int, height: int) -> bytes:
    raw = bytearray(encoded(Image.fromarray(scene(16, 16)), "JPEG"))
    place = raw.index(b"\xff\xc0")
    raw[place + 5:place + 9] = struct.pack(">HH", height, width)
    return bytes(raw)


@pytest.mark.parametrize("raw", [png_header(60000, 60000), png_header(14000, 13000), jpeg_header(65000, 65000)])
def test_bombs_are_refused_by_their_header(raw: bytes) -> None:
    import resource

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert "million" in refusal(raw)
    grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown_kib < 100_000, "memory was taken for the pixels of a bomb"


def test_large_images_are_accepted_up_to_the_limit() -> None:
    side = 10_000  # above the size at which Pillow warns, below the limit
    assert 89_478_485 < side * side < MAX_PIXELS
    canonical = ingest(encoded(Image.new("L", (side, side), 99), compress_level=1), "large", IngestOptions(resize=8))
    assert (canonical.width, canonical.height, canonical.source_width) == (8, 8, side)


def test_sides_beyond_what_can_be_resampled_are_refused() -> None:
    raw = encoded(Image.new("L", (MAX_SIDE + 1, 2)))
    assert str(MAX_SIDE) in refusal(raw)
    assert ingest(raw, "thin", IngestOptions(resize=1)).height == 1


Damage = Callable[[bytes], bytes]


@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF", "WEBP", "GIF", "BMP", "PPM", "JPEG2000"])
def test_cut_off_files_are_refused(format: str) -> None:
    raw = encoded(Image.fromarray(scene(64, 64)), format)
    for length in (1, 3, len(raw) // 3, len(raw) // 2, len(raw) * 9 // 10):
        refusal(raw[:length])


def test_jpegs_that_libjpeg_would_patch_up_are_refused() -> None:
    image = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    raw = encoded(Image.fromarray(image), "JPEG", quality=90)
    start = raw.index(b"\xff\xda") + 20
    silent = 0
    for place in range(start, len(raw) - 10, 41):
        broken = bytearray(raw)
        broken[place:place + 4] = b"\xff\xd9\xff\xd9"  # the end mark, too early
        with pytest.raises(ImageError):
            ingest(bytes(broken), "photo.jpg", JPG)
        try:
            Image.open(io.BytesIO(bytes(broken))).load()
            silent += 1
        except OSError:
            pass
    assert silent, "if Pillow refused them all, the stricter decoder would not be needed"


def test_a_png_whose_last_checksum_is_wrong_is_refused() -> None:
    raw = bytearray(encoded(Image.fromarray(scene())))
    raw[raw.index(b"IEND") - 5] ^= 1  # the last byte of the pixels' checksum, behind the last pixel
    Image.open(io.BytesIO(bytes(raw))).load()  # Pillow never gets there
    assert "does not match its checksum" in refusal(bytes(raw))
    with pytest.raises(ImageError, match="checksum"):
        decode_canonical(bytes(raw), "it")


@pytest.mark.parametrize(("raw", "what"), [
    (b"", "empty"),
    (b"hello, this is text", "not an image"),
    (b"<!DOCTYPE html><html>404", "not an image that can be read here: it begins with '<!DOCTYP'"),
    (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
    (bytes(1000), "it begins with the bytes 00 00 00 00 00 00 00 00"),
    ("äöü, in text".encode(), "it begins with the bytes c3 a4 c3"),
    (b"\xff\xd8\xff", ""),
])
def test_what_is_no_image_is_refused(raw: bytes, what: str) -> None:
    assert what in refusal(raw)


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP", "TIFF"])
def test_animations_are_refused(format: str) -> None:
    frames = [Image.fromarray(scene()), Image.fromarray(scene()[::-1].copy())]
    assert "several frames" in refusal(encoded(frames[0], format, save_all=True, append_images=frames[1:]))


def test_a_multi_picture_jpeg_is_its_first_picture() -> None:
    first, second = Image.fromarray(scene()), Image.new("RGB", (37, 23))
    raw = encoded(first, "MPO", save_all=True, append_images=[second])
    pixels = ingest(raw, "phone.jpg", JPG).pixels
    assert np.abs(pixels.astype(int) - scene()).mean() < 10


@pytest.mark.parametrize("values", [np.full((4, 4), 2.0), np.full((4, 4), -0.1), np.full((4, 4), np.nan)])
def test_floats_without_a_known_white_are_refused(values: NDArray[np.float64]) -> None:
    assert "floating-point" in refusal(encoded(Image.fromarray(values.astype(np.float32)), "TIFF"))


def test_32_bit_integers_are_refused() -> None:
    assert "32-bit" in refusal(encoded(Image.fromarray(np.full((4, 4), 70000, np.int32)), "TIFF"))


@settings(max_examples=150)
@given(data=st.data(), format=st.sampled_from(["JPEG", "PNG", "GIF", "TIFF", "WEBP", "BMP"]))
def test_random_damage_never_ends_in_another_error(data: st.DataObject, format: str) -> None:
    raw = bytearray(encoded(Image.fromarray(scene()), format))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    try:
        canonical = ingest(bytes(raw), "photo", JPG)
    except ImageError:
        return
    assert shown(canonical).shape == (canonical.height, canonical.width, 3), "accepted, so the stream must read it"


def test_canonical_images_of_others() -> None:
    rgb = scene()
    jpg, png = encoded(Image.fromarray(rgb), "JPEG"), encoded(Image.fromarray(rgb))
    assert decode_canonical(jpg, "it")[0] == "jpg"
    kind, pixels = decode_canonical(png, "it")
    assert kind == "png"
    assert np.array_equal(pixels, rgb)
    turned = Image.Exif()
    turned[0x0112] = 6
    refused = {
        "EXIF": encoded(Image.fromarray(rgb), "JPEG", exif=turned),
        "orientation is 6": encoded(Image.fromarray(rgb), exif=turned),
        "CMYK": encoded(Image.fromarray(rgb).convert("CMYK"), "JPEG"),
        "16 bits": encoded(Image.fromarray(rgb[:, :, 0].astype(np.uint16))),
        "transparent": encoded(Image.fromarray(rgb).convert("RGBA")),
        "neither": encoded(Image.fromarray(rgb), "GIF"),
        "damaged": jpg[:len(jpg) * 9 // 10],
    }
    for what, raw in refused.items():
        with pytest.raises(ImageError, match=what):
            decode_canonical(raw, "it")


@settings(max_examples=150)
@given(data=st.data(), format=st.sampled_from(["JPEG", "PNG"]))
def test_what_is_accepted_of_others_is_what_the_stream_reads(data: st.DataObject, format: str) -> None:
    raw = bytearray(encoded(Image.fromarray(scene()), format))
    for _ in range(data.draw(st.integers(0, 2))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    try:
        kind, pixels = decode_canonical(bytes(raw), "it")
    except ImageError:
        return
    seen = decode_rgb(bytes(raw), kind)
    assert np.array_equal(seen, np.broadcast_to(pixels, seen.shape))


def test_options_refuse_nonsense() -> None:
    for wrong in ({"resize": 0}, {"quality": 101}, {"format": "gif"}, {"size": 3}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            IngestOptions.model_validate(wrong)


def test_imports_nothing_of_training() -> None:
    code = "import sys, distrib.data.ingest; print([m for m in ('torch', 'webdataset') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert result.stdout.strip() == "[]"


def test_grey_jpegs_are_read_as_rgb_by_the_stream() -> None:
    grey = ingest(encoded(Image.fromarray(scene()[:, :, 0])), "grey", JPG)
    assert simplejpeg.decode_jpeg_header(grey.content)[2] == "Gray"
    rgb = shown(grey)
    assert np.array_equal(rgb[:, :, 0], rgb[:, :, 2])


def test_pages_are_not_counted() -> None:
    """The time of counting the pages of a TIFF grows with their square: hours for a file of 20 MB."""
    with io.BytesIO() as file:
        Image.new("L", (1, 1)).save(file, "TIFF")
        raw = file.getvalue()
    begin = int.from_bytes(raw[4:8], "little")
    directory = raw[begin:begin + 2 + 12 * int.from_bytes(raw[begin:begin + 2], "little")]
    pages = bytearray(raw[:begin])
    for _ in range(100_000):
        pages += directory + (len(pages) + len(directory) + 4).to_bytes(4, "little")
    assert "several frames" in refusal(bytes(pages))


def test_a_source_may_have_as_many_pixels_as_is_said() -> None:
    raw = encoded(Image.fromarray(scene()), "PNG")
    width, height = scene().shape[1], scene().shape[0]
    assert ingest(raw, "x", IngestOptions(), width * height).width == width
    for kind in ("PNG", "JPEG"):
        with pytest.raises(ImageError, match=r"more than the .* million accepted"):
            ingest(encoded(Image.fromarray(scene()), kind), "x", IngestOptions(), width * height - 1)


def test_a_jpeg_of_many_scans_is_refused() -> None:
    raw = encoded(Image.fromarray(scene()), "JPEG", progressive=True)
    scan = raw[raw.index(b"\xff\xda"):-2]
    assert "scans, more than the 100 accepted" in refusal(raw[:-2] + scan * 20 + raw[-2:])
