"""Test-time augmentation: the views of an image whose answers are averaged, in `predict` and inside an ensemble."""

from __future__ import annotations

from typing import Literal

Tta = Literal["none", "hflip", "flips"]

VIEWS: dict[str, tuple[tuple[int, ...], ...]] = {
    "none": ((),), "hflip": ((), (2,)), "flips": ((), (2,), (1,), (1, 2)),
}
"""Axes of images_NHWC that each view is flipped along."""
