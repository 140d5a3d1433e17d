"""From runs and bundles to one page and a model card each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from distrib import __version__
from distrib.config import EvaluateConfig
from distrib.data.fields import read_fields
from distrib.data.manifest import load_manifest
from distrib.durable import replace_file
from distrib.errors import ConfigError, DataError, storage_errors
from distrib.evaluate import Scored, check_writable, classes_of, scored, some
from distrib.report.judged import LETTERS, Judged, Levels, judge_target
from distrib.report.page import Content, render_card, render_page
from distrib.report.subgroups import Wish, parse_wish, split_levels
from distrib.report.wishes import Wishes

Tell = Callable[[str], None]

_MARKS = (b"<title>Report: ", b"The facts were filled in by distrib ")
"""Of pages and of cards, near their beginning."""


def run_report(wishes: Wishes, tell: Tell = lambda _: None) -> dict[str, Any]:
    """Judge every target on one split of one dataset; write the page and the cards. Returns what `--json` prints.

    Every target is measured with the first one's ``evaluate`` section, on the same samples and resamples, so that
    differences are paired. Raises any DistribError; then nothing is written.
    """
    page, cards = paths(wishes.out, len(wishes.targets))
    subgroups = [parse_wish(text) for text in wishes.subgroups]
    for path in (page, *cards):
        check_writable(path, "report")
    check_place(wishes.out, page, cards)
    check_alike(wishes.targets, wishes.data)
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


def check_place(out: Path, page: Path, cards: Sequence[Path]) -> None:
    """Raises ConfigError where something else would be overwritten, or a folder of other things would get a report.

    A folder may be new or empty, or hold an earlier report.
    """
    with storage_errors(f"the report {page} could not be written", "nothing was judged"):
        foreign = next((path for path in (page, *cards) if path.exists() and not _is_ours(path)), None)
        if foreign is not None:
            raise ConfigError(f"{foreign} exists, and no report wrote it", "nothing was judged; it is as it was",
                              "choose another --out, or move it away")
        if page.parent == out.absolute() and not page.exists() and page.parent.is_dir() and any(page.parent.iterdir()):
            raise ConfigError(f"--out {out} is not empty and holds no report", "nothing was judged",
                              f"choose another folder, or name a file to put it there: --out {out / page.name}")


def _is_ours(path: Path) -> bool:
    with path.open("rb") as file:
        beginning = file.read(1 << 16)
    return any(mark in beginning for mark in _MARKS)


def _levels(one: Scored, wished: Sequence[Wish]) -> Levels:
    fields = read_fields(one.folder, one.samples, [wish.name for wish in wished])
    return {wish.name: split_levels(wish, fields[wish.name]) for wish in wished}


def check_alike(targets: Sequence[Path], data: Path | None) -> None:
    """Raises DataError unless all targets can be judged on the same dataset with the same classes; judges none."""
    if len(targets) == 1:
        return
    read = [classes_of(target) for target in targets]
    classes, folder = read[0]
    for target, (theirs, _) in zip(targets, read, strict=True):
        if theirs != classes:
            raise DataError(f"the classes of {target} are {some(theirs)}, those of {targets[0]} are {some(classes)}",
                            "their scores can not stand side by side, and nothing was judged",
                            "name runs and bundles of the same classes")
    folders = {folder for _, folder in read}
    if data is None and len(folders) > 1:  # a copy is the same dataset; one folder is, without a look
        digests = {one: load_manifest(one).sha256 for one in folders}
        for target, (_, theirs_folder) in zip(targets, read, strict=True):
            if digests[theirs_folder] != digests[folder]:
                raise DataError(f"{target} and {targets[0]} are of different datasets",
                                "their scores can not stand side by side, and nothing was judged",
                                "name one dataset for all with --data")


def check_same(one: Scored, first: Scored) -> None:
    """Raises DataError unless a target was judged on the first one's samples."""
    if one.samples.keys != first.samples.keys:  # views of one dataset have its seal
        raise DataError(f"{one.target} and {first.target} were validated on different folds of the dataset, so on "
                        "different samples", "their scores can not stand side by side",
                        "compare them on the test split with --split test, or make a report of each")
