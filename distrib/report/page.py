"""The page and the model card, rendered from templates in which every value is escaped unless it says otherwise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import jinja2
from markupsafe import Markup

from distrib.data.manifest import Manifest
from distrib.data.report import dataset_report
from distrib.errors import printable
from distrib.evaluate import METRIC_WORDS
from distrib.metrics import LOWER_IS_BETTER
from distrib.report.facts import experiment_differences, leaks
from distrib.report.figures import (
    PART_WORDS,
    Figure,
    calibration_figures,
    roc_figures,
    time_figures,
    training_figures,
)
from distrib.report.history import time_split
from distrib.report.judged import MOST_CLASSES, Judged, difference
from distrib.report.mistakes import SIDE
from distrib.report.svg import STYLES
from distrib.report.words import interval, markdown, number, short, signed, with_interval

_WHOLE_CONFUSION = 12
_MOST_CONFUSIONS = 20
_MOST_RANKS = 16


@dataclass(frozen=True)
class Content:
    """All that a report tells."""

    several: Sequence[Judged]
    manifest: Manifest
    split: str
    subgroup_names: Sequence[str]
    metric: str
    """evaluate.metric of the first."""
    made: datetime
    version: str


def render_page(content: Content) -> str:
    """The HTML page."""
    several = content.several
    classes = list(several[0].report["classes"])
    environment = _environment(autoescape=True, finalize=_plain)
    return environment.get_template("page.html").render(
        content=content, several=several, first=several[0], classes=classes, dataset=dataset_report(content.manifest),
        metrics=_metric_rows(several), confusions=[_confusion(one, classes) for one in several],
        roc=_drawn(roc_figures(several, classes)), calibration=_drawn(calibration_figures(several)),
        training=_drawn(training_figures(several, content.metric)), time=_drawn(time_figures(several)),
        splits={one.letter: time_split(one.history.steps) for one in several if one.history is not None},
        part_words=PART_WORDS, differences=experiment_differences([one.facts.experiment for one in several]),
        leaks=leaks(content.manifest, content.split), most_classes=MOST_CLASSES, most_ranks=_MOST_RANKS, side=SIDE,
        fact_names=list(dict.fromkeys(name for one in several for name, _ in one.facts.rows)),
        num_shown=sum(len(one.mistakes) for one in several), colours=[style.colour for style in STYLES],
    )


def render_card(content: Content, one: Judged) -> str:
    """The Markdown model card of one target."""
    environment = _environment(autoescape=False, finalize=_plain_markdown)
    return environment.get_template("card.md").render(
        content=content, one=one, classes=list(one.report["classes"]), dataset=dataset_report(content.manifest),
        metrics=_metric_rows([one]), leaks=leaks(content.manifest, content.split),
    )


def _environment(*, autoescape: bool, finalize: Any) -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("distrib.report"), finalize=finalize, trim_blocks=True,
        autoescape=autoescape,  # noqa: S701  # of Markdown `finalize` takes care
        lstrip_blocks=True, undefined=jinja2.StrictUndefined, keep_trailing_newline=True,
    )
    environment.filters |= {"number": number, "interval": interval, "with_interval": with_interval, "short": short,
                            "signed": signed}
    return environment


def _plain(value: Any) -> Any:
    """Of every value that goes into the page: control characters, and those that turn the direction, made visible."""
    if isinstance(value, Markup | int | float | jinja2.Undefined):
        return value
    return printable_lines(str(value))


def _plain_markdown(value: Any) -> Any:
    return value if isinstance(value, int | float | jinja2.Undefined) else markdown(str(value))


def printable_lines(text: str) -> str:
    """`printable`, but for line ends."""
    return "\n".join(printable(line) for line in text.split("\n"))


def _drawn(figures: Sequence[Figure]) -> list[dict[str, Any]]:
    return [{"title": one.title, "svg": Markup(one.svg), "caption": one.caption, "of": one.of}  # noqa: S704
            for one in figures]


def _metric_rows(several: Sequence[Judged]) -> list[dict[str, Any]]:
    """A row a metric, a cell a target: {"words", "better", "cells": [{"value", "interval", "difference"}]}."""
    rows = []
    for name, words in METRIC_WORDS.items():
        if name not in several[0].report:
            continue
        cells = []
        for one in several:
            told = difference(one, several[0], name) if one is not several[0] else None
            cells.append({
                "value": number(one.report[name]), "interval": interval(one.intervals.get(name)),
                "difference": None if told is None else signed(told[0]) + interval(told[1], form=" ({} to {})"),
                "is_clear": told is not None and _is_clear(told[1]),
            })
        rows.append({"name": name, "words": words.format(**several[0].report), "cells": cells,
                     "better": "lower" if name in LOWER_IS_BETTER else "higher"})
    return rows


def _is_clear(one: dict[str, Any] | None) -> bool:
    return one is not None and one["low"] is not None and (one["low"] > 0 or one["high"] < 0)


def _confusion(one: Judged, classes: Sequence[str]) -> dict[str, Any]:
    """{"rows": [(class, total, [(count, share)])]} of few classes; of many {"pairs": [(is, label, count, share)]}."""
    matrix = one.report["confusion_matrix"]
    totals = [sum(row) for row in matrix]
    if len(classes) <= _WHOLE_CONFUSION:
        return {"rows": [(name, total, [(count, count / total if total else 0.0) for count in row])
                         for name, total, row in zip(classes, totals, matrix, strict=True)], "pairs": None}
    pairs = [(classes[truth], classes[label], count, count / totals[truth])
             for truth, row in enumerate(matrix) for label, count in enumerate(row) if truth != label and count]
    return {"rows": None, "pairs": sorted(pairs, key=lambda pair: -pair[2])[:_MOST_CONFUSIONS]}
