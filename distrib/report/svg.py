"""Charts as SVG text: pure functions of numbers. No script, no style sheet, no address outside.

Lines are told apart without colour, by dash, marker and the letter that stands on them; areas by their hatching.
Colours are those of Okabe and Ito ("Color Universal Design", 2008) that stand out from white by 3 to 1 or nearly.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

from distrib.errors import printable

WIDTH, HEIGHT = 360, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 50, 14, 14, 44
_FONT = 12
_MARKED = 12  # with so many points or fewer each has its marker
_LETTER_WIDTH = 6.3  # of a proportional font of this size, about

Point = tuple[float, float]


@dataclass(frozen=True)
class Style:
    """How one line looks, of several."""

    colour: str
    dash: str
    """Of SVG's stroke-dasharray; empty: solid."""
    marker: str
    """Of `_MARKERS`."""


STYLES = (Style("#0072B2", "", "circle"), Style("#D55E00", "8 3", "square"), Style("#000000", "2 3", "triangle"),
          Style("#009E73", "9 3 2 3", "diamond"), Style("#B5588F", "4 2 1 2", "cross"))
"""One a line; the last is Okabe's and Ito's reddish purple, darkened."""

_MARKERS = {
    "circle": "M-3.5 0A3.5 3.5 0 1 0 3.5 0A3.5 3.5 0 1 0 -3.5 0Z", "square": "M-3-3H3V3H-3Z",
    "triangle": "M0-4L4 3H-4Z", "diamond": "M0-4.5L4 0L0 4.5L-4 0Z", "cross": "M-3-3L3 3M-3 3L3-3",
}
_HATCHES = (  # fill, and lines over it: as light, hatched, dark and dotted areas they differ in grey, too
    ("#DCE9F2", ""), ("#FFFFFF", '<path d="M0 6L6 0" stroke="#B34700" stroke-width="1.4"/>'), ("#2F5D7C", ""),
    ("#F4E3B5", '<circle cx="3" cy="3" r="1.1" fill="#000000"/>'),
)


@dataclass(frozen=True)
class Axis:
    """A linear axis."""

    label: str
    low: float
    high: float


@dataclass(frozen=True)
class Line:
    """One line of a chart. Points that are not finite break it."""

    label: str
    """What the key says."""
    letter: str
    """Stands on the line; empty where it is the only one."""
    points: Sequence[Point]
    style: int = 0
    band: Sequence[tuple[float, float, float]] = ()
    """(x, low, high): the area around it."""
    has_markers: bool = True


@dataclass(frozen=True)
class Bin:
    """One bar of a reliability diagram."""

    low: float
    high: float
    count: int
    confidence: float
    """Mean of its samples, the x of its point."""
    accuracy: float
    interval: tuple[float, float] | None


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten from ``low`` to ``high``, ``about`` so many; at least two.

    Raises ValueError unless low < high, both finite.
    """
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"no axis reaches from {low} to {high}")
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    for step in (next((m * power for m in (1, 2, 5, 10) if m * power >= raw), 10 * power), power, power / 2, power / 5):
        slack = step * 1e-9
        first, last = math.ceil((low - slack) / step), math.floor((high + slack) / step)
        if last > first:
            return [number * step for number in range(first, last + 1)]
    return [low, high]  # an interval so narrow, so far from 0, that floats hardly tell its ends apart


def around(values: Sequence[float], *, zero: bool = False) -> tuple[float, float]:
    """Bounds of an axis that holds all finite values, on round numbers; with ``zero`` it begins at 0 or below."""
    finite = [value for value in values if math.isfinite(value)] or [0.0, 1.0]
    low, high = min(finite), max(finite)
    if zero:
        low, high = min(low, 0.0), max(high, 0.0)
    if not high > low:
        pad = abs(low) * 0.1 or 1.0
        low, high = (0.0 if zero and low == 0 else low - pad), high + pad
    marks = ticks(low, high)
    step = marks[1] - marks[0]
    return math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step


def number_text(value: float, step: float) -> str:
    """A tick's label, with the decimals that the distance of the ticks asks for."""
    if value != 0 and (abs(value) >= 1e6 or step < 1e-5):
        return f"{value:.3g}"
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    text = f"{value:.{decimals}f}"
    return "0" if float(text) == 0 else text


def line_chart(description: str, x: Axis, y: Axis, lines: Sequence[Line], *, diagonal: bool = False,
               key: str = "lower right", level: float | None = None) -> str:
    """Lines over two axes. ``key`` says in which corner the key stands, ``diagonal`` and ``level`` draw a thin line of
    reference from corner to corner or at a height."""
    frame = _Frame(x, y)
    parts = list(frame.axes())
    if diagonal:
        parts.append(_reference(frame.x(x.low), frame.y(y.low), frame.x(x.high), frame.y(y.high)))
    if level is not None:
        parts.append(_reference(frame.x(x.low), frame.y(level), frame.x(x.high), frame.y(level)))
    for line in lines:
        if line.band:
            colour = STYLES[line.style].colour
            edge = [(frame.x(at), frame.y(high)) for at, _, high in line.band]
            edge += [(frame.x(at), frame.y(low)) for at, low, _ in reversed(line.band)]
            parts.append(f'<path d="{_path(edge)}Z" fill="{colour}" fill-opacity="0.16" stroke="none"/>')
    for number, line in enumerate(lines):
        parts += _drawn(frame, line, (number + 1) / (len(lines) + 1))
    parts += _key(lines, key)
    return _svg(description, parts)


def reliability_chart(description: str, bins: Sequence[Bin], style: int = 0, few: int = 10) -> str:
    """Accuracy over confidence, a point a bin with its interval, hollow where it has fewer than ``few`` samples; below,
    bars of the bins' counts, the largest a third of the height."""
    frame = _Frame(Axis("confidence: largest probability", 0, 1), Axis("accuracy", 0, 1))
    parts = list(frame.axes())
    largest = max((one.count for one in bins), default=0)
    for one in bins:
        height = one.count / largest / 3 if largest else 0.0
        left, right = frame.x(one.low) + 0.7, frame.x(one.high) - 0.7
        top = frame.y(height)
        parts.append(f'<rect x="{left:.1f}" y="{top:.1f}" width="{right - left:.1f}" '
                     f'height="{frame.y(0) - top:.1f}" fill="#C9C9C9"/>')
    parts.append(_reference(frame.x(0), frame.y(0), frame.x(1), frame.y(1)))
    colour = STYLES[style].colour
    used = [one for one in bins if one.count]
    middle = [(frame.x(one.confidence), frame.y(one.accuracy)) for one in used]
    parts.append(f'<path d="{_path(middle)}" fill="none" stroke="{colour}" stroke-width="1.2" '
                 f'stroke-dasharray="{STYLES[style].dash or "none"}"/>')
    for (at, height), one in zip(middle, used, strict=True):
        if one.interval is not None:
            parts.append(f'<path d="M{at:.1f} {frame.y(one.interval[0]):.1f}V{frame.y(one.interval[1]):.1f}" '
                         f'stroke="{colour}" stroke-width="1.6"/>')
        fill = colour if one.count >= few else "#FFFFFF"
        parts.append(f'<path transform="translate({at:.1f} {height:.1f})" d="{_MARKERS[STYLES[style].marker]}" '
                     f'fill="{fill}" stroke="{colour}" stroke-width="1.5"/>')
    return _svg(description, parts)


def stacked_chart(description: str, x: Axis, y: Axis, at: Sequence[float],
                  layers: Sequence[tuple[str, Sequence[float]]], name: str) -> str:
    """Areas one above the other, (label, heights) each, at most four, from the bottom up. ``name``, a plain word, is
    that of no other chart on the page."""
    frame = _Frame(x, y, top=_TOP + 34)
    parts = [f'<pattern id="{name}-{number}" width="6" height="6" patternUnits="userSpaceOnUse">'
             f'<rect width="6" height="6" fill="{fill}"/>{lines}</pattern>'
             for number, (fill, lines) in enumerate(_HATCHES[:len(layers)])]
    parts = [f"<defs>{''.join(parts)}</defs>"]
    floor = [0.0] * len(at)
    for number, (_, heights) in enumerate(layers):
        roof = [low + height for low, height in zip(floor, heights, strict=True)]
        edge = [(frame.x(one), frame.y(min(high, y.high))) for one, high in zip(at, roof, strict=True)]
        edge += [(frame.x(one), frame.y(min(low, y.high)))
                 for one, low in zip(reversed(at), reversed(floor), strict=True)]
        parts.append(f'<path d="{_path(edge)}Z" fill="url(#{name}-{number})" stroke="#333333" stroke-width="0.6"/>')
        floor = roof
    parts += frame.axes(grid=False)
    half = (WIDTH - _LEFT) / 2
    for number, (label, _) in enumerate(layers):
        left, top = _LEFT + half * (number % 2), 4 + 18 * (number // 2)
        parts.append(f'<rect x="{left:.1f}" y="{top}" width="20" height="12" fill="url(#{name}-{number})" '
                     f'stroke="#333333" stroke-width="0.8"/>' + _text(left + 26, top + 10, label))
    return _svg(description, parts)


@dataclass(frozen=True)
class _Frame:
    """From numbers to places on the canvas."""

    x_axis: Axis
    y_axis: Axis
    top: float = _TOP

    def x(self, value: float) -> float:
        share = (value - self.x_axis.low) / (self.x_axis.high - self.x_axis.low)
        return _LEFT + share * (WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        share = (value - self.y_axis.low) / (self.y_axis.high - self.y_axis.low)
        return HEIGHT - _BOTTOM - share * (HEIGHT - self.top - _BOTTOM)

    def axes(self, grid: bool = True) -> Iterator[str]:
        left, right, bottom = _LEFT, WIDTH - _RIGHT, HEIGHT - _BOTTOM
        marks = ticks(self.x_axis.low, self.x_axis.high)
        for mark in marks:
            yield _grid(self.x(mark), self.top, self.x(mark), bottom) if grid else ""
            yield _text(self.x(mark), bottom + 16, number_text(mark, marks[1] - marks[0]), "middle")
        marks = ticks(self.y_axis.low, self.y_axis.high)
        for mark in marks:
            yield _grid(left, self.y(mark), right, self.y(mark)) if grid else ""
            yield _text(left - 6, self.y(mark) + 4, number_text(mark, marks[1] - marks[0]), "end")
        yield (f'<path d="M{left} {self.top}V{bottom}H{right}" fill="none" stroke="#333333" stroke-width="1"/>')
        yield _text((left + right) / 2, HEIGHT - 8, self.x_axis.label, "middle")
        middle = (self.top + bottom) / 2
        yield _text(0, 0, self.y_axis.label, "middle", f' transform="translate(13 {middle:.1f}) rotate(-90)"')


def _drawn(frame: _Frame, line: Line, letter_at: float) -> Iterator[str]:
    style = STYLES[line.style]
    runs: list[list[Point]] = [[]]
    for at, value in line.points:
        if math.isfinite(at) and math.isfinite(value):
            runs[-1].append((frame.x(at), frame.y(value)))
        elif runs[-1]:
            runs.append([])
    for places in filter(None, runs):
        dash = f' stroke-dasharray="{style.dash}"' if style.dash else ""
        yield (f'<path d="{_path(places)}" fill="none" stroke="{style.colour}" stroke-width="2" '
               f'stroke-linejoin="round"{dash}/>')
    longest = max(runs, key=len)
    if line.has_markers and longest:
        marked = longest if len(longest) <= _MARKED else list(_along(longest, [number / 5 for number in range(6)]))
        for left, top in marked:
            yield _marker(style, left, top)
    if line.letter and longest:
        left, top = next(_along(longest, [letter_at]))
        top = max(top - 5, frame.top + 11)
        yield (f'<text x="{left:.1f}" y="{top:.1f}" text-anchor="middle" font-weight="bold" font-size="14" '
               f'fill="{style.colour}" stroke="#FFFFFF" stroke-width="3.5" paint-order="stroke">'
               f'{_safe(line.letter)}</text>')


def _along(places: Sequence[Point], shares: Sequence[float]) -> Iterator[Point]:
    """Points at these shares of a path's length."""
    lengths = [0.0]
    for (left, top), (right, bottom) in pairwise(places):
        lengths.append(lengths[-1] + math.hypot(right - left, bottom - top))
    for share in shares:
        wanted = share * lengths[-1]
        number = next((i for i in range(1, len(lengths)) if lengths[i] >= wanted), 0)
        if number == 0 or lengths[number] == lengths[number - 1]:
            yield places[number]
            continue
        part = (wanted - lengths[number - 1]) / (lengths[number] - lengths[number - 1])
        (left, top), (right, bottom) = places[number - 1], places[number]
        yield left + part * (right - left), top + part * (bottom - top)


def _key(lines: Sequence[Line], corner: str) -> Iterator[str]:
    named = [line for line in lines if line.label]
    if not named:
        return
    width = 40 + max(len(line.label) for line in named) * _LETTER_WIDTH
    height = 16 * len(named) + 6
    left = WIDTH - _RIGHT - width - 4 if "right" in corner else _LEFT + 6
    top = HEIGHT - _BOTTOM - height - 6 if "lower" in corner else _TOP + 2
    yield (f'<rect x="{left:.1f}" y="{top:.1f}" width="{width:.1f}" height="{height}" fill="#FFFFFF" '
           'fill-opacity="0.85"/>')
    for number, line in enumerate(named):
        style, middle = STYLES[line.style], top + 11 + 16 * number
        dash = f' stroke-dasharray="{style.dash}"' if style.dash else ""
        yield f'<path d="M{left + 2:.1f} {middle:.1f}h28" stroke="{style.colour}" stroke-width="2"{dash}/>'
        if line.has_markers:
            yield _marker(style, left + 16, middle)
        yield _text(left + 35, middle + 4, line.label)


def _marker(style: Style, left: float, top: float) -> str:
    return (f'<path transform="translate({left:.1f} {top:.1f})" d="{_MARKERS[style.marker]}" fill="{style.colour}" '
            f'stroke="{style.colour}"/>')


def _path(places: Sequence[Point]) -> str:
    return "M" + "L".join(f"{left:.1f} {top:.1f}" for left, top in places) if places else ""


def _grid(left: float, top: float, right: float, bottom: float) -> str:
    return f'<path d="M{left:.1f} {top:.1f}L{right:.1f} {bottom:.1f}" stroke="#E2E2E2" stroke-width="1"/>'


def _reference(left: float, top: float, right: float, bottom: float) -> str:
    return (f'<path d="M{left:.1f} {top:.1f}L{right:.1f} {bottom:.1f}" stroke="#777777" stroke-width="1" '
            'stroke-dasharray="1 3"/>')


def _text(left: float, top: float, text: str, anchor: str = "start", more: str = "") -> str:
    return f'<text x="{left:.1f}" y="{top:.1f}" text-anchor="{anchor}"{more}>{_safe(text)}</text>'


def _safe(text: str) -> str:
    return escape(printable(text))


def _svg(description: str, parts: Sequence[str]) -> str:
    return (f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{_safe(description)}" '
            f'font-family="system-ui, sans-serif" font-size="{_FONT}" fill="#1A1A1A">{"".join(parts)}</svg>')
