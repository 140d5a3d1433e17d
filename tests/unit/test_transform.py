"""Geometry against exact expectations; randomness as a function of (seed, epoch, sample) alone."""

from __future__ import annotations

import io
import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from distrib.data import transform
from distrib.data.decode import Pixels
from distrib.data.transform import EvalTransform, TrainTransform, Window, sample_window


def png(pixels: Pixels) -> bytes:
    with io.BytesIO() as file:
        Image.fromarray(pixels).save(file, "PNG")
        return file.getvalue()


def noise(height: int, width: int, seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def ramps(height: int, width: int) -> Pixels:
    """Linear in x (red) and in y (green), so that every value tells its place: 2 grey levels a pixel."""
    y, x = np.mgrid[:height, :width]
    return np.stack([2 * x, 2 * y, np.full_like(x, 40)], axis=2).astype(np.uint8)


def plain(side: int, **changes: object) -> TrainTransform:
    """No change at all, but for what is given."""
    options: dict[str, object] = {"seed": 0, "min_area": 1.0, "max_aspect": 1.0, "hflip": False, "vflip": False,
                                  "rotate_degrees": 0.0, "brightness": 0.0, "contrast": 0.0}
    return TrainTransform(side, **{**options, **changes})  # type: ignore[arg-type]


def whole(side: int, **changes: object) -> Window:
    return Window(side / 2, side / 2, side, side, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("side", [8, 33, 64])
def test_the_identity_is_exact(side: int) -> None:
    pixels = noise(side, side)
    np.testing.assert_array_equal(sample_window(png(pixels), "png", whole(side), side), pixels)
    np.testing.assert_array_equal(EvalTransform(side)(png(pixels), "png"), pixels)
    np.testing.assert_array_equal(plain(side)(png(pixels), "png", 3, 5), pixels)


@pytest.mark.parametrize("side", [8, 33])
def test_flips_are_exact_mirrors(side: int) -> None:
    pixels = noise(side, side)
    for hflip, vflip in ((True, False), (False, True), (True, True)):
        seen = sample_window(png(pixels), "png", whole(side, hflip=hflip, vflip=vflip), side)
        np.testing.assert_array_equal(seen, pixels[:: -1 if vflip else 1, :: -1 if hflip else 1])


@pytest.mark.parametrize("quarters", [-1, 1, 2, 3])
@pytest.mark.parametrize("side", [16, 33])
def test_quarter_turns_are_those_of_numpy(side: int, quarters: int) -> None:
    pixels = noise(side, side)
    seen = sample_window(png(pixels), "png", whole(side, angle=quarters * math.pi / 2), side)
    # The interpolation's weights have 5 bits or more.
    assert np.abs(seen.astype(int) - np.rot90(pixels, quarters)).max() <= 8


def test_an_integer_shift_is_exact_and_beyond_the_border_the_image_is_reflected() -> None:
    pixels = noise(20, 30)
    around = np.pad(pixels, ((12, 12), (12, 12), (0, 0)), mode="reflect")
    for left, top in ((0, 0), (14, 4), (-5, 2), (20, -3), (25, 15), (-12, -12)):
        window = Window(left + 8, top + 8, 16, 16)
        seen = sample_window(png(pixels), "png", window, 16)
        np.testing.assert_array_equal(seen, around[top + 12 : top + 28, left + 12 : left + 28])


@settings(max_examples=80)
@given(st.data())
def test_every_output_pixel_shows_its_place_in_the_source(data: st.DataObject) -> None:
    height, width = data.draw(st.integers(40, 120)), data.draw(st.integers(40, 120))
    side = data.draw(st.integers(4, 40))
    angle = data.draw(st.floats(-math.pi, math.pi))
    reach = min(height, width) - 14  # the rotated window and the decoder's averaging stay inside the image
    crop_w, crop_h = (data.draw(st.floats(4, reach / math.sqrt(2))) for _ in range(2))
    margin = math.hypot(crop_w, crop_h) / 2 + 5
    center_x = data.draw(st.floats(margin, max(margin, width - margin)))
    center_y = data.draw(st.floats(margin, max(margin, height - margin)))
    hflip, vflip = data.draw(st.booleans()), data.draw(st.booleans())
    window = Window(center_x, center_y, crop_w, crop_h, angle, hflip, vflip)
    seen = sample_window(png(ramps(height, width)), "png", window, side).astype(float)
    j, i = np.meshgrid((np.arange(side) + 0.5) / side - 0.5, (np.arange(side) + 0.5) / side - 0.5)
    across, down = j * crop_w * (-1 if hflip else 1), i * crop_h * (-1 if vflip else 1)
    x = center_x + math.cos(angle) * across - math.sin(angle) * down - 0.5
    y = center_y + math.sin(angle) * across + math.cos(angle) * down - 0.5
    assert np.abs(seen[:, :, 0] - 2 * x).max() <= 2
    assert np.abs(seen[:, :, 1] - 2 * y).max() <= 2
    assert (seen[:, :, 2] == 40).all()


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 50), (50, 1), (2, 3)])
def test_the_smallest_images_fill_the_output(height: int, width: int) -> None:
    pixels = np.full((height, width, 3), 77, dtype=np.uint8)
    for made in (EvalTransform(8)(png(pixels), "png"),
                 plain(8, rotate_degrees=45.0, min_area=0.2, max_aspect=2.0)(png(pixels), "png", 0, 0)):
        np.testing.assert_array_equal(made, np.full((8, 8, 3), 77, dtype=np.uint8))


def test_evaluation_takes_the_central_square() -> None:
    pixels = noise(20, 33)  # the square begins half a pixel off
    wide = np.concatenate([pixels, pixels[:, -1:]], axis=1)
    np.testing.assert_array_equal(EvalTransform(20)(png(wide), "png"), wide[:, 7:27])
    tall = wide.transpose(1, 0, 2)
    np.testing.assert_array_equal(EvalTransform(20)(png(tall), "png"), tall[7:27])
    np.testing.assert_array_equal(EvalTransform(10, 0.5)(png(wide), "png"), wide[5:15, 12:22])


JITTER = plain(12, min_area=0.3, max_aspect=1.5, hflip=True, vflip=True, rotate_degrees=40.0, brightness=0.2,
               contrast=0.3)


def test_a_sample_looks_the_same_for_the_same_key_in_any_order_and_thread() -> None:
    content = png(noise(30, 40))
    keys = [(epoch, sample) for epoch in range(4) for sample in range(12)]
    first = {key: JITTER(content, "png", *key) for key in keys}
    again = {key: JITTER(content, "png", *key) for key in reversed(keys)}
    with ThreadPoolExecutor(4) as pool:
        threaded = dict(zip(keys, pool.map(lambda key: JITTER(content, "png", *key), keys), strict=True))
    for key in keys:
        np.testing.assert_array_equal(first[key], again[key])
        np.testing.assert_array_equal(first[key], threaded[key])
    assert len({pixels.tobytes() for pixels in first.values()}) == len(keys)  # every epoch and sample differs


def test_another_seed_looks_otherwise() -> None:
    content = png(noise(30, 40))
    other = TrainTransform(**{**vars(JITTER), "seed": 1})
    assert not np.array_equal(JITTER(content, "png", 0, 0), other(content, "png", 0, 0))


def windows(monkeypatch: pytest.MonkeyPatch, made: TrainTransform, height: int, width: int, count: int) -> list[Window]:
    seen: list[Window] = []

    def note(content: bytes, kind: str, window: Window, side: int) -> Pixels:
        seen.append(window)
        return np.zeros((side, side, 3), dtype=np.uint8)

    monkeypatch.setattr(transform, "sample_window", note)
    content = png(np.zeros((height, width, 3), dtype=np.uint8))
    for sample in range(count):
        made(content, "png", 0, sample)
    return seen


def test_crops_lie_inside_and_cover_what_was_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    made = plain(12, min_area=0.25, max_aspect=1.25, hflip=True, rotate_degrees=30.0)
    seen = windows(monkeypatch, made, 60, 60, 600)
    for window in seen:
        assert window.width / 2 <= window.center_x <= 60 - window.width / 2 + 1e-9
        assert window.height / 2 <= window.center_y <= 60 - window.height / 2 + 1e-9
        assert 1 / 1.2501 <= window.width / window.height <= 1.2501
    areas = np.array([window.width * window.height for window in seen]) / 3600
    angles = np.degrees([window.angle for window in seen])
    # Evenly drawn: close to both ends, the middle in the middle.
    assert 0.249 < areas.min() < 0.27
    assert areas.max() > 0.95
    assert abs(angles).max() <= 30
    assert angles.min() < -28
    assert angles.max() > 28
    assert abs(float(np.mean([window.hflip for window in seen])) - 0.5) < 0.08
    assert not any(window.vflip for window in seen)
    centers = np.array([(w.center_x - w.width / 2) / (60 - w.width + 1e-9) for w in seen])
    assert abs(float(centers.mean()) - 0.5) < 0.05


def test_tone_is_the_identity_at_rest_and_contrast_turns_about_grey() -> None:
    np.testing.assert_array_equal(transform._tone(1.0, 0.0), np.arange(256))
    np.testing.assert_array_equal(transform._tone(1.0, 0.1), np.clip(np.rint(np.arange(256) + 25.5), 0, 255))
    flat = transform._tone(0.0, 0.0)
    assert set(flat.tolist()) == {128}
    steep = transform._tone(1.5, 0.0)
    assert (steep[0], steep[255]) == (0, 255)
    np.testing.assert_array_equal(steep.astype(int) + steep[::-1], np.full(256, 255))
    assert steep[200] == round((200 - 127.5) * 1.5 + 127.5)


def test_brightness_stays_within_its_bound_and_reaches_it() -> None:
    content = png(np.full((12, 12, 3), 100, dtype=np.uint8))
    made = plain(12, brightness=0.2)
    levels = []
    for sample in range(300):
        pixels = made(content, "png", 0, sample)
        assert pixels.min() == pixels.max()  # one change for the whole image
        levels.append(int(pixels[0, 0, 0]))
    assert 49 <= min(levels) < 53
    assert 147 < max(levels) <= 151
