"""Where a model looked, for models of which that is known."""

from __future__ import annotations

import numpy as np
import pytest

from distrib.heatmap import occlusion_map, overlay
from distrib.scoring import Forward, Images, Logits


def looks_at(rows: slice, columns: slice) -> Forward:
    """A model whose second logit is the brightness of one place."""

    def forward(images_NHWC: Images) -> Logits:
        seen_N = images_NHWC[:, rows, columns].astype(np.float32).mean(axis=(1, 2, 3)) / 64
        return np.stack([np.zeros_like(seen_N), seen_N], axis=1)

    return forward


def image_with_a_bright_spot() -> Images:
    image_HWC = np.full((32, 48, 3), 20, dtype=np.uint8)
    image_HWC[8:16, 36:48] = 250
    return image_HWC


def test_the_map_points_at_what_the_model_looks_at() -> None:
    forward = looks_at(slice(8, 16), slice(36, 48))
    falls_CC = occlusion_map(forward, image_with_a_bright_spot(), 1, cells=4)
    assert falls_CC.shape == (4, 4)
    assert falls_CC.max() == falls_CC[1, 3] > 0.2
    others = np.delete(falls_CC.ravel(), 7)
    assert np.abs(others).max() == 0
    other_class = occlusion_map(forward, image_with_a_bright_spot(), 0, cells=4)
    np.testing.assert_allclose(other_class, -falls_CC, atol=1e-7)


@pytest.mark.parametrize("side", [5, 28, 33, 224])
def test_any_side_is_covered_whole_and_no_pixel_twice(side: int) -> None:
    image_HWC = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    seen: list[Images] = []

    def forward(images_NHWC: Images) -> Logits:
        seen.append(images_NHWC)
        return np.zeros((len(images_NHWC), 2), dtype=np.float32)

    colour = image_HWC.reshape(-1, 3).mean(axis=0).round().astype(np.uint8)
    image_HWC[(image_HWC == colour).all(axis=2)] += 1  # so that a covered pixel can be told
    occlusion_map(forward, image_HWC, 0, cells=5)
    changed = (seen[0] != image_HWC).any(axis=3)
    assert not changed[-1].any()
    assert (changed.sum(axis=0) == 1).all()


def test_the_overlay_is_strongest_there_and_leaves_the_rest_grey() -> None:
    falls_CC = np.zeros((4, 4), dtype=np.float32)
    falls_CC[1, 3] = 0.001
    drawn_HWC = overlay(image_with_a_bright_spot(), falls_CC)
    spread_HW = np.ptp(drawn_HWC.astype(int), axis=2)
    assert spread_HW[8:16, 36:48].max() == spread_HW.max() > 20
    assert spread_HW[24:, :24].max() <= 1
    flat = overlay(image_with_a_bright_spot(), np.full((4, 4), -1, dtype=np.float32))
    assert np.ptp(flat.astype(int), axis=2).max() == 0  # nothing hangs on anything
