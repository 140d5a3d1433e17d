"""The report's charts, out of what was computed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from distrib.metrics import LOWER_IS_BETTER
from distrib.report.history import PARTS, in_buckets
from distrib.report.judged import Judged
from distrib.report.svg import Axis, Line, around, line_chart, reliability_chart, stacked_chart
from distrib.report.words import interval, number

_BUCKETS = 150
_TIME_BUCKETS = 60
PART_WORDS = {"data_s": "waiting for data", "compute_s": "compute", "communication_s": "communication",
              "rest_s": "the rest"}


@dataclass(frozen=True)
class Figure:
    title: str
    svg: str
    caption: str = ""
    of: str = ""
    """The class that it is of, where there is one of each."""


def roc_figures(several: Sequence[Judged], classes: Sequence[str]) -> list[Figure]:
    """ROC and precision-recall of every shown class, two figures each, all targets in one chart."""
    figures = []
    for k in several[0].curves:
        found = [(number, one, one.curves[k]) for number, one in enumerate(several)]
        roc, precision = [], []
        for style, one, curves in found:
            if curves is None:
                continue
            letter = one.letter if len(several) > 1 else ""
            area = _key(letter, "AUROC", curves.auroc, interval(curves.auroc_interval))
            roc.append(Line(area, letter, curves.roc, style, curves.roc_band))
            area = _key(letter, "AP", curves.average_precision, interval(curves.average_precision_interval))
            precision.append(Line(area, letter, curves.precision, style, curves.precision_band))
        if not roc:
            continue
        name, rest = classes[k], "the other class" if len(classes) == 2 else "the rest"
        share = several[0].report["per_class"][name]["support"] / several[0].report["num_samples"]
        figures.append(Figure(f"ROC: {name} against {rest}", line_chart(
            f"ROC curve of {name}: " + "; ".join(line.label for line in roc),
            Axis("false-positive rate (1 - specificity)", 0, 1), Axis("sensitivity", 0, 1), roc, diagonal=True),
            of=name))
        figures.append(Figure(f"Precision and recall: {name}", line_chart(
            f"Precision over recall of {name}: " + "; ".join(line.label for line in precision),
            Axis("recall (sensitivity)", 0, 1), Axis("precision (PPV)", 0, 1), precision, key="lower left",
            level=share), f"The dotted line is the part of {name} in the split, {share:.3f}: what chance gives.",
            of=name))
    return figures


def calibration_figures(several: Sequence[Judged]) -> list[Figure]:
    """A reliability diagram a target."""
    figures = []
    for style, one in enumerate(several):
        error = number(one.report["calibration_error"])
        bounds = interval(one.intervals.get("calibration_error"), form=" ({} to {})")
        title = f"{one.letter}: reliability" if len(several) > 1 else "Reliability"
        figures.append(Figure(title, reliability_chart(
            f"Reliability diagram of {one.letter}, expected calibration error {error}", one.bins, style),
            f"Expected calibration error {error}{bounds}."))
    return figures


def training_figures(several: Sequence[Judged], metric: str) -> list[Figure]:
    """Loss of training, loss and metric of validation, a line a run."""
    runs = [(style, one, one.history) for style, one in enumerate(several) if one.history is not None]
    figures = []
    losses = [_line(one, style, len(several), [(part["step"], part["loss"]) for part in
                                               in_buckets(history.steps, ("loss",), _BUCKETS)], has_markers=False)
              for style, one, history in runs if history.steps]
    if losses:
        size = max(math.ceil(len(history.steps) / _BUCKETS) for _, _, history in runs)
        figures.append(_over_steps("Training loss", "loss", losses,
                                   f"Means over up to {size} steps." if size > 1 else ""))
    for name in dict.fromkeys(("loss", metric if metric not in LOWER_IS_BETTER else "accuracy")):
        lines = []
        for style, one, history in runs:
            points = [(float(step), float(scores[name])) for step, scores in history.validations
                      if isinstance(scores.get(name), int | float)]
            if points:
                lines.append(_line(one, style, len(several), points))
        if lines:
            figures.append(_over_steps(f"Validation: {name}", name, lines, ""))
    return figures


def time_figures(several: Sequence[Judged]) -> list[Figure]:
    """Seconds of a step by what they were spent on, a chart a run."""
    figures = []
    for one in several:
        steps = one.history.steps[1:] if one.history is not None else ()
        parts = [part for part in in_buckets(steps, PARTS, _TIME_BUCKETS)
                 if all(math.isfinite(part[name]) for name in PARTS)]
        if len(parts) < 2:
            continue
        totals = [sum(part[name] for name in PARTS) for part in parts]
        _, high = around([float(np.quantile(totals, 0.95)) * 1.15], zero=True)
        at = [part["step"] for part in parts]
        title = f"{one.letter}: seconds a step" if len(several) > 1 else "Seconds a step"
        cut = " Peaks above the axis are cut." if max(totals) > high else ""
        figures.append(Figure(title, stacked_chart(
            f"Seconds a step of {one.letter}, stacked: " + ", ".join(PART_WORDS.values()),
            Axis("step", at[0], at[-1]), Axis("seconds", 0, high), at,
            [(PART_WORDS[name], [part[name] for part in parts]) for name in PARTS], f"time-{one.letter}"),
            f"The first step, which compiles, is left out.{cut}"))
    return figures


def _line(one: Judged, style: int, of: int, points: Sequence[tuple[float, float]], *, has_markers: bool = True) -> Line:
    letter = one.letter if of > 1 else ""
    return Line(letter, letter, points, style, has_markers=has_markers or of > 1)


def _over_steps(title: str, what: str, lines: Sequence[Line], caption: str) -> Figure:
    steps = [at for line in lines for at, _ in line.points]
    values = [value for line in lines for _, value in line.points]
    low, high = around(values)
    last = max(steps)
    return Figure(title, line_chart(f"{title} by step", Axis("step", 0, last if last > 0 else 1), Axis(what, low, high),
                                    lines, key="upper right" if what == "loss" else "lower right"), caption)


def _key(letter: str, what: str, value: float, bounds: str) -> str:
    return (f"{letter}: " if letter else f"{what} ") + number(value) + (f" ({bounds})" if bounds else "")
