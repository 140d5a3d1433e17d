"""`distrib report` on real runs, opened in a real browser: nothing leaves the page, nothing breaks it, all is there."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from playwright.sync_api import Browser, Page, Route, sync_playwright

from distrib.config import load_run_experiment
from distrib.data.prepare import run_prepare
from distrib.errors import DataError
from distrib.evaluate import run_evaluate
from distrib.report.run import run_report
from distrib.report.wishes import Wishes
from distrib.rundir import RunDir
from tests.conftest import draw_image

CHROMIUM = shutil.which("chromium")
BAD = '<script>document.title="broken"</script>'
GOOD = 'benign "n\u00e6vus" & \u05d0\u05d1 | *x*'
GROUP = '"><img src=x onerror=alert(1)>\u202e'
EXPERIMENT = """\
data: {dataset: %s, image_size: 16}
model: {name: small_cnn}
train: {epochs: 2, global_batch: 16, lanes: 4, lr: 0.05, precision: fp32}
evaluate: {metric: auroc, positive_class: '%s', bootstrap: 30}
"""


@dataclass
class Made:
    """Runs, their bundle and reports of them."""

    folder: Path
    runs: list[Path]
    result: dict[str, Any]
    """Of the report on both runs."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("report")
    rng = np.random.default_rng(0)
    rows = []
    for number in range(240):
        path = folder / "images" / f"{number:03d}.png"
        path.parent.mkdir(exist_ok=True)
        cv2.imwrite(str(path), draw_image(number % 2, rng, 24))
        label = number % 2 if rng.random() < 0.8 else 1 - number % 2  # some labels are wrong, so errors there are
        rows.append([path.name, (GOOD, BAD)[label], f"{GROUP}{number // 2}", number % 83,
                     ("arm", BAD)[number % 3 == 0]])
    with (folder / "labels.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["image", "label", "patient", "age", "site"], *rows])
    run_prepare(folder / "images", folder / "data", labels=folder / "labels.csv", image_column="image",
                label_column="label", group_column="patient", kept_columns=("age", "site"), split="0.4/0.4/0.2")
    (folder / "experiment.yaml").write_text(EXPERIMENT % (folder / "data", BAD.replace("'", "''")))
    runs = [folder / "first", folder / "second"]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda run, lr: command(folder, "train", "experiment.yaml", "--run", str(run), "--set",
                                              f"train.lr={lr}"), runs, ("0.05", "0.01")))
    with (runs[1] / "metrics.jsonl").open("a") as file:
        for event in ({"event": "slow_rank", "step": 8, "rank": 3, "host": f"node{BAD}", "since_step": 5,
                       "likely_cause": BAD, "against_others": 3.1, "against_past": None},
                      {"event": "members", "step": 9, "ranks": 3, "lost": [{"number": 1, "host": "node7"}],
                       "joined": []}):
            file.write(json.dumps(event) + "\n")
    printed = command(folder, "report", *map(str, runs), "--out", "two.html", "--subgroup", "age=20,60", "--subgroup",
                      "site", "--errors", "8", "--json")
    return Made(folder, runs, json.loads(printed))


def command(folder: Path, *words: str) -> str:
    done = subprocess.run([sys.executable, "-m", "distrib", *words], cwd=folder, capture_output=True, text=True,
                          env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])},
                          timeout=200)
    assert done.returncode == 0, done.stderr
    return done.stdout


def wishes(made: Made, *targets: Path, **changed: Any) -> Wishes:
    return Wishes(**{"targets": targets, "out": made.folder / "other", "data": None, "split": "val", "subgroups": (),
                     "errors": 0, "bootstrap": 0, **changed})


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        assert os.environ.get("CI") != "true", "chromium is not installed"
        pytest.skip("chromium is not installed")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@dataclass
class Opened:
    """A page, and what happened on it that should not."""

    page: Page
    faults: list[str] = field(default_factory=list)


def opened(browser: Browser, path: str, width: int = 360) -> Opened:
    context = browser.new_context(viewport={"width": width, "height": 740})
    one = Opened(context.new_page())

    def route(asked: Route) -> None:
        if asked.request.url.startswith("file://") and asked.request.url.endswith(Path(path).name):
            asked.continue_()
        else:
            one.faults.append(asked.request.url)
            asked.abort()

    context.route("**/*", route)
    one.page.on("console", lambda message: one.faults.append(message.text))
    one.page.on("pageerror", lambda error: one.faults.append(str(error)))
    one.page.on("dialog", lambda dialog: one.faults.append(dialog.message))
    one.page.on("websocket", lambda socket: one.faults.append(socket.url))
    one.page.goto(f"file://{path}")
    return one


def test_nothing_leaves_the_page_and_nothing_in_it_runs(browser: Browser, made: Made) -> None:
    one = opened(browser, made.result["page"])
    assert one.page.title().startswith("Report: ")
    assert one.page.locator("script").count() == 0
    assert one.page.locator("[onerror], [onload], link, iframe, object").count() == 0
    assert BAD in one.page.inner_text("main")  # it is text
    assert "\u202e" not in one.page.content()
    assert "\\u202e" in one.page.inner_text("#errors")
    assert one.page.locator("img").count() == 16
    assert one.page.evaluate("[...document.images].every(one => one.complete && one.naturalWidth === 160)")
    assert one.faults == []
    # The policy itself forbids what a mistake of ours might bring in.
    one.page.evaluate("document.body.appendChild(Object.assign(new Image(), {src: 'https://example.invalid/x.png'}))")
    one.page.evaluate("new Promise(done => setTimeout(done, 200))")
    assert not any(fault == "https://example.invalid/x.png" for fault in one.faults)
    assert any("Content Security Policy" in fault for fault in one.faults)


@pytest.mark.parametrize("width", [360, 768, 1280])
def test_it_never_scrolls_sideways(browser: Browser, made: Made, width: int) -> None:
    page = opened(browser, made.result["page"], width).page
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    wide = page.evaluate("""width => [...document.querySelectorAll('main *')]
        .filter(one => !one.closest('.box') && one.getBoundingClientRect().right > width + 0.5)
        .map(one => one.outerHTML.slice(0, 80))""", width)
    assert wide == []
    assert page.evaluate("[...document.querySelectorAll('table')].every(one => one.closest('.box[tabindex]'))")


def test_it_prints(browser: Browser, made: Made) -> None:
    page = opened(browser, made.result["page"], 688).page  # A4 less its margins, in pixels of CSS
    assert page.pdf(format="A4").startswith(b"%PDF")
    page.emulate_media(media="print")
    assert page.evaluate("document.documentElement.scrollWidth") <= 688
    assert not page.locator("nav").is_visible()


def test_lines_differ_by_more_than_colour_and_everything_has_a_name(browser: Browser, made: Made) -> None:
    page = opened(browser, made.result["page"], 1200).page
    for chart in page.locator("#curves svg, #training svg").all():
        dashes = chart.evaluate("""one => [...one.querySelectorAll('path[stroke-width="2"]')]
            .filter(path => !path.getAttribute('d').includes('h28'))
            .map(path => path.getAttribute('stroke-dasharray'))""")
        assert len(dashes) == len(set(dashes)) == 2
        assert chart.evaluate("one => [...one.querySelectorAll('text[font-weight=bold]')].map(text => text.textContent)"
                              ) == ["A", "B"]
    assert page.locator("svg:not([aria-label])").count() == 0
    assert page.locator("img:not([alt])").count() == 0
    assert page.locator("th:not([scope])").count() == 0
    assert page.locator("h1").count() == 1
    assert page.evaluate("[...document.querySelectorAll('nav a')].every(one => document.querySelector(one.hash))")


def test_the_page_says_what_evaluate_says(browser: Browser, made: Made) -> None:
    page = opened(browser, made.result["page"], 1200).page
    text = page.inner_text("main")
    for told, run in zip(made.result["targets"], made.runs, strict=True):
        report = run_evaluate(run, split="val")
        assert {name: told[name] for name in report} == report
        assert f"{report['auroc']:.3f}" in page.inner_text("#metrics")
    first, second = (target["auroc"] for target in made.result["targets"])
    assert re.search(rf"AUROC\s+{first:.3f}.*{second:.3f}.*[+-]{abs(second - first):.3f}", text.replace("\n", " "))
    cells = page.locator("#confusion table").first.locator("td.n").all_inner_texts()
    counts = [int(cell.split("\n")[0]) for cell in cells]
    matrix = made.result["targets"][0]["confusion_matrix"]
    assert counts == [count for row in matrix for count in (*row, sum(row))]
    for words in ("below 20", "20 to below 60", "60 and more", "fewer than", "node7", "train.lr", "the end",
                  made.result["targets"][0]["weights_sha256"], made.result["targets"][0]["dataset_sha256"]):
        assert words in text, words
    assert "validation split" in page.inner_text("header")
    assert made.result["bytes"] == Path(made.result["page"]).stat().st_size < 1_000_000


def test_the_card_has_the_facts_and_marks_what_is_left_to_people(made: Made) -> None:
    first = made.result["targets"][0]
    card = Path(made.result["cards"][0]).read_text()
    assert [Path(card).name for card in made.result["cards"]] == ["two-A.md", "two-B.md"]
    assert card.count("**NOT FILLED IN**") >= 8
    assert first["weights_sha256"] in card
    assert f"| AUROC | {first['auroc']:.3f} |" in card
    assert "**No test figures are in this card.**" in card
    assert "| below 20 |" in card
    assert "<script" not in card
    tables: dict[int, int] = {}
    for number, line in enumerate(card.splitlines()):  # every row of a table has as many cells as the row above
        if line.startswith("|"):
            tables[number] = len(re.findall(r"(?<!\\)\|", line))
            assert tables.get(number - 1, tables[number]) == tables[number], line


def test_a_bundle_and_the_test_split(browser: Browser, made: Made) -> None:
    command(made.folder, "export", str(made.runs[0]), "--out", "bundle", "--format", "onnx")
    result = run_report(wishes(made, made.folder / "bundle", split="test", errors=2))
    one = opened(browser, result["page"])
    header, text = one.page.inner_text("header"), one.page.inner_text("main")
    assert "This is the test split. Reading it is a final act" in header
    assert "A bundle holds no record of its training." in text
    assert result["targets"][0]["bundle_sha256"] in text
    assert one.page.locator("img").count() == 4
    assert one.faults == []
    assert "decided nothing of this model" in Path(result["cards"][0]).read_text()


def test_several_classes(browser: Browser, made: Made, experiment: Path) -> None:
    command(made.folder, "train", str(experiment), "--run", "three", "--set", "train.steps=4")
    result = run_report(wishes(made, made.folder / "three", bootstrap=10, errors=2))
    page = opened(browser, result["page"]).page
    assert page.locator("#curves svg").count() == 6
    assert page.locator("#thresholds table").count() == 3
    parts = page.locator("#curves svg, #thresholds table").all()
    assert not any(part.is_visible() for part in parts)  # on a phone many classes would be very long
    page.locator("#curves summary").nth(1).click()
    assert [part.is_visible() for part in parts] == [False] * 2 + [True] * 2 + [False] * 5
    page.emulate_media(media="print")
    assert all(part.is_visible() and part.evaluate("one => one.checkVisibility({contentVisibilityAuto: true})")
               for part in parts)
    page.emulate_media(media="screen")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    with pytest.raises(DataError, match="the classes of"):
        run_report(wishes(made, made.runs[0], made.folder / "three"))


def test_runs_of_different_datasets_are_not_put_side_by_side(made: Made) -> None:
    moved = made.folder / "moved"
    shutil.copytree(made.runs[0], moved)
    run_prepare(made.folder / "images", made.folder / "data2", labels=made.folder / "labels.csv", image_column="image",
                label_column="label", group_column="patient", split="0.4/0.4/0.2", seed=1)
    experiment = load_run_experiment(RunDir(moved))
    data = experiment.data.model_copy(update={"dataset": made.folder / "data2"})
    RunDir(moved).experiment.write_bytes(experiment.model_copy(update={"data": data}).to_bytes())
    out = made.folder / "not-made"
    with pytest.raises(DataError, match="are of different datasets"):
        run_report(wishes(made, made.runs[0], moved, out=out))
    assert not out.exists()
    page = Path(run_report(wishes(made, made.runs[0], moved, data=made.folder / "data"))["page"]).read_text()
    assert "another dataset than the one that" not in page
    page = Path(run_report(wishes(made, moved))["page"]).read_text()
    assert "another dataset than the one that" in page


def test_a_run_that_did_not_end_says_so(made: Made) -> None:
    cut = made.folder / "cut"
    shutil.copytree(made.runs[0], cut)
    RunDir(cut).result.unlink()
    for run, says in ((made.runs[0], False), (cut, True)):
        told: list[str] = []
        assert run_evaluate(run, split="train", bootstrap=0, tell=told.append)["finished"] is not says
        assert any("was not trained to its end" in line for line in told) is says
        assert any("these samples were trained on" in line for line in told)
        result = run_report(wishes(made, run))
        for path in (result["page"], *result["cards"]):
            assert ("was not trained to its end" in Path(path).read_text()) is says
