"""Predictions as pictures: a contact sheet as PNG, and blocks for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

_COLUMNS = 8
_TILE = 112
_CAPTION = 22
_BLOCKS = 14  # pixels a side in the terminal; two of them stand in one character
_MARGIN = 4  # MNIST leaves so many pixels free around a digit


@dataclass(frozen=True)
class Shown:
    """One prediction to show."""

    image: Path
    truth: str
    label: str
    probability: float
    """Of ``label``."""

    @property
    def right(self) -> bool:
        return self.label == self.truth

    @property
    def caption(self) -> str:
        wrong = "" if self.right else f", is {self.truth}"
        return f"{self.label} ({self.probability:.0%}{wrong})"


def choose(predictions: Sequence[Shown], count: int) -> list[Shown]:
    """Some of the predictions: first the wrong ones, at most half, then right ones of every kind in turn."""
    wrong = [one for one in predictions if not one.right][:count // 2]
    kinds: dict[str, list[Shown]] = {}
    for one in predictions:
        if one.right:
            kinds.setdefault(one.truth, []).append(one)
    turns = max((len(kind) for kind in kinds.values()), default=0)
    right = [kinds[name][turn] for turn in range(turns) for name in sorted(kinds) if turn < len(kinds[name])]
    return (wrong + right)[:count]


def contact_sheet(shown: Sequence[Shown], out: Path) -> None:
    """Draw the predictions in a grid, wrong ones in red."""
    rows = -(-len(shown) // _COLUMNS)
    sheet = Image.new("RGB", (_COLUMNS * _TILE, rows * (_TILE + _CAPTION)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for number, one in enumerate(shown):
        x, y = number % _COLUMNS * _TILE, number // _COLUMNS * (_TILE + _CAPTION)
        with Image.open(one.image) as image:
            digit = image.convert("RGB").resize((_TILE - 8, _TILE - 8), Image.Resampling.BICUBIC)
        sheet.paste(digit, (x + 4, y + 4))
        draw.text((x + _TILE / 2, y + _TILE + 8), one.caption, fill="black" if one.right else "red", font=font,
                  anchor="mm")
    sheet.save(out)


def terminal_lines(shown: Sequence[Shown], width: int = 78) -> list[str]:
    """The digits in half blocks, side by side, with their captions; plain text at most ``width`` wide."""
    cell = _BLOCKS + 1
    columns = max(1, width // cell)
    lines: list[str] = []
    for first in range(0, len(shown), columns):
        row = shown[first:first + columns]
        drawn = [_blocks(one.image) for one in row]
        lines += [" ".join(parts) for parts in zip(*drawn, strict=True)]
        lines += [" ".join(f"{one.caption:<{_BLOCKS}.{_BLOCKS}}" for one in row), ""]
    return lines


def _blocks(path: Path) -> list[str]:
    """One digit, black and white, as _BLOCKS / 2 lines of _BLOCKS characters."""
    with Image.open(path) as image:
        side = image.width - 2 * _MARGIN
        inner = image.convert("L").crop((_MARGIN, _MARGIN, _MARGIN + side, _MARGIN + side))
        ink = np.asarray(inner.resize((_BLOCKS, _BLOCKS), Image.Resampling.BOX)) > 90
    return ["".join(" ▀▄█"[int(top) + 2 * int(bottom)] for top, bottom in zip(ink[y], ink[y + 1], strict=True))
            for y in range(0, _BLOCKS, 2)]
