"""From runs and bundles to one page and a model card each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from distrib import __version__
from distrib.config import EvaluateConfig
from distrib.data.fields import read_fields
from distrib.durable import replace_file
from distrib.errors import DataError, storage_errors
from distrib.evaluate import Scored, check_classes, check_writable, scored
from distrib.report.judged import LETTERS, Judged, Levels, judge_target
from distrib.report.page import Content, render_card, render_page
from distrib.report.subgroups import Wish, parse_wish, split_levels
from distrib.report.wishes import Wishes

Tell = Callable[[str], None]


def run_report(wishes: Wishes, tell: Tell = lambda _: None) -> dict[str, Any]:
    """Judge every target on one split of one dataset; write the page and the cards. Returns what `--json` prints.

    Every target is measured with the first one's ``evaluate`` section, on the same samples and resamples, so that
    differences are paired. Raises any DistribError; then nothing is written.
    """
    page, cards = paths(wishes.out, len(wishes.targets))
    subgroups = [parse_wish(text) for text in wishes.subgroups]
    for path in (page, *cards):
        check_writable(path, "report")
    several: list[Judged] = []
    first: tuple[Scored, EvaluateConfig, Levels] | None = None
    for letter, target in zip(LETTERS, wishes.targets, strict=False):
        tell(f"judging {target} on the {wishes.split} split")
        with scored(target, wishes.data, wishes.split, tell=tell) as one:
            if first is None:
                config = one.subject.experiment.evaluate
                first = one, config, _levels(one, subgroups)
            beside, config, levels = first
            check_same(one, beside)
            resamples = config.bootstrap if wishes.bootstrap is None else wishes.bootstrap
            several.append(judge_target(letter, one, config, levels, wishes.errors // len(wishes.targets), resamples,
                                        tell))
    assert first is not None
    content = Content(several, first[0].manifest, wishes.split, [wish.name for wish in subgroups], first[1].metric,
                      datetime.now(UTC), __version__)
    text = render_page(content)
    with storage_errors(f"the report {page} could not be written", "there is no complete report"):
        for path, written in [*((card, render_card(content, one)) for card, one in zip(cards, several, strict=True)),
                              (page, text)]:
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(path, written.encode())
    return {"page": str(page), "cards": [str(card) for card in cards], "bytes": len(text.encode()),
            "split": wishes.split, "targets": [one.report for one in several]}


def paths(out: Path, num_targets: int) -> tuple[Path, list[Path]]:
    """The page and the cards: of a name that ends in .html, beside it; else in that folder."""
    is_page = out.suffix.lower() in (".html", ".htm")
    page = (out if is_page else out / "report.html").absolute()
    stem = page.with_suffix("").name if is_page else "model-card"
    names = [f"{stem}.md"] if num_targets == 1 else [f"{stem}-{letter}.md" for letter in LETTERS[:num_targets]]
    return page, [page.with_name(name) for name in names]


def _levels(one: Scored, wished: Sequence[Wish]) -> Levels:
    fields = read_fields(one.folder, one.samples, [wish.name for wish in wished])
    return {wish.name: split_levels(wish, fields[wish.name]) for wish in wished}


def check_same(one: Scored, first: Scored) -> None:
    """Raises DataError unless a target was judged on the first one's samples and classes."""
    check_classes(one.manifest, first.subject.classes, str(first.target))
    if one.manifest.sha256 != first.manifest.sha256:
        raise DataError(f"{one.target} and {first.target} are of different datasets",
                        "their scores can not stand side by side", "name one dataset for all with --data")
    if one.samples.keys != first.samples.keys:  # views of one dataset have its seal
        raise DataError(f"{one.target} and {first.target} were validated on different folds of the dataset, so on "
                        "different samples", "their scores can not stand side by side",
                        "compare them on the test split with --split test, or make a report of each")
