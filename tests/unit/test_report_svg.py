"""Charts: scales and ticks by property, lines that are told apart without colour, text that can not break out."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distrib.report.svg import (
    STYLES,
    Axis,
    Bin,
    Line,
    around,
    line_chart,
    number_text,
    reliability_chart,
    stacked_chart,
    ticks,
)

UNIT = Axis("x", 0, 1)
Numbers = st.floats(-1e9, 1e9, allow_nan=False)


@given(Numbers, Numbers)
def test_ticks_lie_within_the_axis_at_equal_round_distances(one: float, other: float) -> None:
    low, high = min(one, other), max(one, other)
    if high - low < 1e-6 * max(1.0, abs(low), abs(high)):
        return
    found = ticks(low, high)
    step = found[1] - found[0]
    assert 2 <= len(found) <= 7
    assert found[0] >= low - step * 1e-6
    assert found[-1] <= high + step * 1e-6
    assert found == pytest.approx([found[0] + number * step for number in range(len(found))])
    digit = step / 10 ** math.floor(math.log10(step) + 1e-6)
    assert min(abs(digit - round_one) for round_one in (1, 2, 5, 10)) < 1e-3


def test_ticks_and_their_labels_by_hand() -> None:
    assert ticks(0, 1) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert [number_text(mark, 0.2) for mark in ticks(0, 1)] == ["0", "0.2", "0.4", "0.6", "0.8", "1.0"]
    assert ticks(3, 57) == [20, 40]
    assert number_text(40, 20) == "40"
    assert number_text(2_000_000, 500_000) == "2e+06"
    with pytest.raises(ValueError, match="no axis"):
        ticks(1, 1)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1))
def test_an_axis_around_values_holds_them(values: list[float]) -> None:
    low, high = around(values)
    assert low < high
    slack = 1e-6 * (high - low)
    assert low - slack <= min(values) <= max(values) <= high + slack
    assert around([*values, math.nan, math.inf]) == (low, high)


def test_places_on_the_canvas_by_hand() -> None:
    root = ET.fromstring(line_chart("two points", UNIT, UNIT, [Line("", "", [(0, 0), (1, 1)])]))
    (line,) = [path for path in root if path.get("stroke-width") == "2"]
    assert line.get("d") == "M50.0 256.0L346.0 14.0"  # lower left and upper right of the plot's area


def test_a_point_that_is_no_number_breaks_the_line() -> None:
    root = ET.fromstring(line_chart("a gap", UNIT, UNIT, [Line("", "", [(0, 0), (0.1, 0), (0.5, math.nan), (0.9, 1)])]))
    assert sum(path.get("stroke-width") == "2" for path in root) == 2


def test_lines_are_told_apart_without_colour() -> None:
    lines = [Line(f"line {number}", "ABCDE"[number], [(0, 0), (1, number / 5)], number) for number in range(5)]
    root = ET.fromstring(line_chart("five lines", UNIT, UNIT, lines))
    drawn = [path for path in root if path.get("stroke-width") == "2" and "h28" not in str(path.get("d"))]
    assert len({path.get("stroke-dasharray") for path in drawn}) == len(lines)
    texts = [text.text for text in root if text.tag.endswith("text")]
    assert set("ABCDE") <= set(texts)
    assert all(line.label in texts for line in lines)
    assert len({style.marker for style in STYLES}) == len(STYLES)


@pytest.mark.parametrize("style", STYLES)
def test_colours_stand_out_from_white(style: object) -> None:
    colour = style.colour  # type: ignore[attr-defined]
    assert 1.05 / (luminance(colour) + 0.05) >= 3  # WCAG 2.1, 1.4.11


def test_areas_are_told_apart_in_grey() -> None:
    chart = stacked_chart("areas", UNIT, UNIT, [0, 1], [(name, [0.1, 0.2]) for name in "abcd"], "one")
    patterns = [pattern for pattern in ET.fromstring(chart).iter() if pattern.tag.endswith("pattern")]
    seen = [(luminance(str(pattern[0].get("fill"))), [child.tag for child in pattern]) for pattern in patterns]
    assert len(seen) == 4
    assert all(abs(one[0] - other[0]) > 0.1 or one[1] != other[1] for one, other in combinations(seen, 2))


def test_text_can_not_break_out() -> None:
    hostile = '</text><script>alert(1)</script>" onload="x\u202e\n'
    bins = [Bin(0.0, 1.0, 3, 0.7, 0.5, (0.1, 0.9))]
    for chart in (line_chart(hostile, Axis(hostile, 0, 1), UNIT, [Line(hostile, hostile, [(0, 0), (1, 1)])]),
                  stacked_chart(hostile, UNIT, Axis(hostile, 0, 1), [0, 1], [(hostile, [0.1, 0.2])], "one"),
                  reliability_chart(hostile, bins)):
        root = ET.fromstring(chart)  # well-formed
        assert not any(element.tag.endswith("script") or "onload" in element.attrib for element in root.iter())
        assert "\u202e" not in chart
        assert "http" not in chart


def luminance(colour: str) -> float:
    """Relative luminance of #RRGGBB; WCAG 2.1."""
    parts = [int(colour[at:at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
