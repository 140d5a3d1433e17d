"""What the report computes: curves, thresholds and subgroups against `distrib.metrics` and by hand."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distrib.config import DataConfig, EvaluateConfig, Experiment, ModelConfig
from distrib.data.folds import load_view
from distrib.data.manifest import DatasetRecord, load_manifest
from distrib.data.transform import EvalTransform
from distrib.decision import softmax
from distrib.documents import validate
from distrib.errors import CheckpointError, ConfigError, DataError
from distrib.evaluate import Scored, Subject
from distrib.metrics import calibration_error, measure
from distrib.report.curves import calibration_bins, class_curves
from distrib.report.history import in_buckets, read_history, time_split
from distrib.report.judged import judge_target
from distrib.report.mistakes import worst
from distrib.report.page import Content, render_page
from distrib.report.run import check_place, check_same, paths, run_report
from distrib.report.subgroups import NOT_GIVEN, Wish, judge_levels, parse_wish, split_levels
from distrib.report.thresholds import asked_for, for_sensitivity, for_specificity, operating_points
from distrib.report.wishes import check_wishes
from distrib.report.words import markdown, signed, with_interval
from distrib.rundir import RunDir
from tests.conftest import MakeDataset, write_dataset

CLASSES = ("benign", "melanoma")


def case(num: int = 200, seed: int = 0) -> tuple[np.ndarray, np.ndarray, list[str]]:
    random = np.random.default_rng(seed)
    labels_N = random.integers(0, 2, num)
    logits_NK = random.normal(size=(num, 2)).round(1).astype(np.float32)  # with ties
    logits_NK[np.arange(num), labels_N] += 1
    return logits_NK, labels_N, [f"g{number // 2}" for number in range(num)]


@given(st.integers(0, 300), st.sampled_from([0.5, 0.8, 0.9, 0.95, 0.99]))
def test_thresholds_reach_what_metrics_say_can_be_reached(seed: int, wanted: float) -> None:
    logits_NK, labels_N, groups = case(60, seed)
    if not 0 < labels_N.sum() < len(labels_N):
        return
    report = measure(logits_NK, labels_N, CLASSES, EvaluateConfig(sensitivity=wanted, specificity=wanted))
    scores_N, truth_N = softmax(logits_NK)[:, 1], labels_N == 1
    sensitive, specific = operating_points(truth_N, asked_for(scores_N, truth_N, [wanted], [wanted]), groups, 0)
    assert sensitive.sensitivity is not None
    assert specific.specificity is not None
    assert sensitive.sensitivity >= wanted - 1e-9
    assert specific.specificity >= wanted - 1e-9
    assert sensitive.specificity == pytest.approx(report["specificity_at_sensitivity"])
    assert specific.sensitivity == pytest.approx(report["sensitivity_at_specificity"])


def test_an_operating_point_by_hand() -> None:
    scores_N = np.array([0.1, 0.2, 0.3, 0.6, 0.7, 0.9])
    truth_N = np.array([False, False, True, False, True, True])
    assert for_sensitivity(scores_N, truth_N, 0.6) == 0.7
    assert for_sensitivity(scores_N, truth_N, 0.7) == 0.3
    assert for_specificity(scores_N, truth_N, 0.6) == 0.3
    assert for_specificity(scores_N, truth_N, 1.0) == 0.7
    assert for_specificity(np.array([0.5, 0.5]), np.array([True, False]), 0.9) is None
    (point,) = operating_points(truth_N, [("by hand", 0.6, scores_N >= 0.6)], list("abcdef"), 0)
    assert (point.hits, point.misses, point.alarms, point.passed) == (2, 1, 1, 2)
    assert point.sensitivity == pytest.approx(2 / 3)
    assert point.specificity == pytest.approx(2 / 3)
    assert point.ppv == pytest.approx(2 / 3)
    assert point.npv == pytest.approx(2 / 3)
    assert point.flagged_per_1000 == 500
    assert asked_for(scores_N, np.ones(6, dtype=bool), [0.9], [0.9]) == []


def test_bands_and_intervals_hold_the_curve_and_the_metrics() -> None:
    logits_NK, labels_N, groups = case()
    probabilities_NK = softmax(logits_NK)
    curves = class_curves(probabilities_NK, labels_N, groups, [1], 200)[1]
    assert curves is not None
    report = measure(logits_NK, labels_N, CLASSES, EvaluateConfig())
    assert (curves.auroc, curves.average_precision) == pytest.approx((report["auroc"], report["average_precision"]))
    assert curves.auroc_interval is not None
    assert curves.auroc_interval["low"] < curves.auroc < curves.auroc_interval["high"]
    assert [*curves.roc[0], *curves.roc[-1]] == [0, 0, 1, 1]
    at, value = map(np.array, zip(*curves.roc, strict=True))
    for place, low, high in curves.roc_band:
        assert low - 1e-9 <= value[at <= place + 1e-9].max() <= high + 1e-9
    recall, precision = curves.precision[-1]
    assert (recall, precision) == pytest.approx((1, labels_N.mean()))
    assert class_curves(probabilities_NK, np.zeros(200, dtype=np.int64), groups, [1], 10) == {1: None}


def test_many_points_are_thinned_and_the_ends_kept() -> None:
    random = np.random.default_rng(1)
    scores = random.random(20_000)
    curves = class_curves(np.stack([1 - scores, scores], axis=1), (random.random(20_000) < scores).astype(np.int64),
                          ["g"] * 20_000, [1], 0)[1]
    assert curves is not None
    assert len(curves.roc) <= 202
    assert (curves.roc[0], curves.roc[-1], curves.roc_band) == ((0, 0), (1, 1), ())


def test_bins_add_up_to_the_calibration_error() -> None:
    logits_NK, labels_N, groups = case()
    bins = calibration_bins(softmax(logits_NK), labels_N, groups, 50)
    assert sum(one.count for one in bins) == 200
    error = sum(one.count / 200 * abs(one.accuracy - one.confidence) for one in bins)
    assert error == pytest.approx(calibration_error(softmax(logits_NK), labels_N))


def test_levels_of_words_and_numbers() -> None:
    def names(wish: Wish, values: list[str | None]) -> dict[str, int]:
        return {name: int(member_N.sum()) for name, member_N in split_levels(wish, values)}

    assert names(Wish("sex"), ["m", "f", None, "m"]) == {"f": 1, "m": 2, NOT_GIVEN: 1}
    assert names(Wish("grade"), ["1", "2", "10", "1"]) == {"1": 2, "2": 1, "10": 1}  # few numbers are as they are
    ages: list[str | None] = [str(age) for age in range(100)]
    assert names(Wish("age"), ages) == {
        "below 24.75": 25, "24.75 to below 49.5": 25, "49.5 to below 74.25": 25, "74.25 and more": 25}
    assert names(Wish("age", (40.0, 60.0)), [*ages, None]) == {
        "below 40": 40, "40 to below 60": 20, "60 and more": 40, NOT_GIVEN: 1}
    sites: list[str | None] = [*(f"site {number}" for number in range(30)), *["site 7"] * 5]
    levels = names(Wish("site"), sites)
    assert len(levels) == 12
    assert (levels["site 7"], levels["19 rarer values"], sum(levels.values())) == (6, 19, 35)
    with pytest.raises(ConfigError, match="'old' is no number"):
        split_levels(Wish("age", (40.0,)), ["30", "old"])


def test_wishes_for_subgroups() -> None:
    assert parse_wish("age") == Wish("age")
    assert parse_wish("age=40,60") == Wish("age", (40.0, 60.0))
    assert parse_wish("a=b") == Wish("a=b")  # a field with the sign in its name
    for text in ("age=60,40", "age=40,40", "age=nan", "=40"):
        with pytest.raises(ConfigError, match="do not rise"):
            parse_wish(text)


def test_a_level_is_judged_on_its_samples_alone_and_small_ones_are_marked() -> None:
    logits_NK, labels_N, groups = case()
    member_N = np.arange(200) < 150
    large, small = judge_levels([("large", member_N), ("small", ~member_N & (np.arange(200) < 160))], logits_NK,
                                labels_N, groups, CLASSES, EvaluateConfig(), None, 20)
    report = measure(logits_NK[member_N], labels_N[member_N], CLASSES, EvaluateConfig())
    value, interval = large.metrics["auroc"]
    assert value == report["auroc"]
    assert interval["low"] < value < interval["high"]
    assert (large.num_samples, large.num_groups, large.num_positive) == (150, 75, int(labels_N[:150].sum()))
    assert large.warnings == ()
    assert small.warnings == ("fewer than 50 samples", "fewer than 10 groups", "fewer than 10 of benign",
                              "fewer than 10 of melanoma")


def test_the_worst_errors_are_those_with_the_least_probability_of_the_truth() -> None:
    probabilities_NK = np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.99, 0.01]])
    assert worst(probabilities_NK, np.array([1, 1, 1, 1]), np.array([0, 0, 1, 0]), 2).tolist() == [3, 0]


def test_a_history_is_read_with_its_gaps_and_its_damage_is_told(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    times = {"step_s": 1.0, "data_s": 0.1, "compute_s": 0.6, "communication_s": 0.2, "rest_s": 0.1}
    records = [{"event": "step", "step": step, "loss": 1 / step, **times} for step in range(1, 11)]
    records += [
        {"event": "slow_rank", "step": 4, "rank": 3, "host": "node2", "since_step": 2, "likely_cause": "swap",
         "against_others": 3.0, "against_past": None},
        {"event": "slow_rank_ended", "step": 7, "rank": 3, "host": "node2"},
        {"event": "ranks", "step": 4, "work_s": [0.1, 0.3], "data_s": [0.0, None]},
        {"event": "members", "step": 8, "ranks": 2, "lost": [{"number": 2, "host": "node2"}], "joined": []},
        {"event": "of a later version", "step": 9},
    ]
    run.metrics.write_text("".join(json.dumps(record) + "\n" for record in records) + '{"event": "st')
    history = read_history(run)
    assert [one["loss"] for one in history.steps] == [1 / step for step in range(1, 11)]
    (slow,) = history.slow
    assert (slow.rank, slow.host, slow.since_step, slow.until_step, slow.score, slow.cause) == (
        3, "node2", 2, 7, 3.0, "swap")
    assert [rank.work_s for rank in history.ranks] == [0.1, 0.3]
    assert history.changes[0].lost == ("number 2 on node2",)
    assert time_split(history.steps)["compute_s"] == pytest.approx((0.6, 0.6))
    buckets = in_buckets(history.steps, ("loss",), 4)
    assert [part["step"] for part in buckets] == [3, 6, 9, 10]
    assert buckets[0]["loss"] == pytest.approx((1 + 1 / 2 + 1 / 3) / 3)
    huge = "9" * 400  # JSON has numbers that no float holds, and Python's takes infinities
    run.metrics.write_text(f'{{"event": "step", "step": 1, "loss": {huge}, "step_s": 1e999, "data_s": -1e300}}\n'
                           '{"event": "members", "step": 2, "ranks": 1e400}\n'
                           f'{{"event": "members", "step": 2, "ranks": {huge}}}\n')
    history = read_history(run)
    assert [change.ranks for change in history.changes] == [0, 0]
    assert time_split(history.steps) == {}
    run.metrics.write_text(f'{{"event": "step", "step": {huge}}}\n')
    with pytest.raises(CheckpointError, match="line 1 does not tell its step"):
        read_history(run)
    run.metrics.write_text('{"event": "step", "loss": 1}\n')
    with pytest.raises(CheckpointError, match="line 1 does not tell its step"):
        read_history(run)
    run.metrics.unlink()
    assert read_history(run).steps == ()


def test_words() -> None:
    assert signed(-0.0001) == "+0.000"
    assert with_interval(0.5, {"low": 0.25, "high": 0.75}) == "0.500 (0.250 to 0.750)"
    assert with_interval(None, None) == "-"
    assert markdown("a|b*c_d[e](f)<script>&`\u202e") == r"a\|b\*c\_d\[e\](f)&lt;script\>&amp;\`\\u202e"


def test_folds_of_one_dataset_do_not_stand_side_by_side(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "data", train=24, val=12, classes=2)

    def one(name: str, **folds: int) -> Scored:
        data = DataConfig(dataset=dataset, **folds)  # type: ignore[arg-type]
        manifest = load_view(data)
        experiment = Experiment(data=data, model=ModelConfig(name="small_cnn"))
        subject = Subject(lambda images: np.zeros((len(images), 2), np.float32), 1, experiment, manifest.classes, None,
                          EvalTransform(8, 1.0), {})
        samples = manifest.samples("val")
        return Scored(Path(name), subject, dataset, manifest, samples, np.zeros((len(samples), 2), np.float32))

    first = one("a", folds=3, fold=0)
    check_same(one("b", folds=3, fold=0), first)
    for other in (one("b", folds=3, fold=1), one("b")):
        assert len(other.samples) == len(first.samples)
        with pytest.raises(DataError, match="different folds"):
            check_same(other, first)


def test_where_the_files_go(tmp_path: Path) -> None:
    assert paths(tmp_path / "out", 1) == (tmp_path / "out" / "report.html", [tmp_path / "out" / "model-card.md"])
    assert paths(tmp_path / "two.html", 2) == (tmp_path / "two.html", [tmp_path / "two-A.md", tmp_path / "two-B.md"])


@pytest.mark.parametrize(("changed", "message"), [
    ({"split": "train"}, "no held-out split"), ({"errors": 25}, "--errors 25"), ({"bootstrap": -1}, "--bootstrap -1"),
    ({"world_size": 2}, "one process"), ({"targets": [Path("a"), Path("./a")]}, "named twice"),
    ({"targets": [Path(str(number)) for number in range(6)]}, "at most 5"), ({"subgroups": ["x", "x"]}, "given twice"),
])
def test_wishes_that_can_not_be_fulfilled(changed: dict[str, object], message: str) -> None:
    wishes = {"targets": [Path("a")], "out": Path("report"), "data": None, "split": "val", "subgroups": (),
              "errors": 24, "bootstrap": None, "world_size": 1, **changed}
    with pytest.raises(ConfigError, match=message):
        check_wishes(**wishes)  # type: ignore[arg-type]


def test_other_classes_are_found_before_anything_is_judged(tmp_path: Path) -> None:
    """Neither run has a checkpoint: judging the first would fail otherwise."""
    for name, classes in (("one", CLASSES), ("other", ("cat", "dog"))):
        run = RunDir(tmp_path / name)
        run.root.mkdir()
        document = {"data": {"dataset": str(tmp_path)}, "model": {"name": "small_cnn"}}
        run.experiment.write_bytes(validate(Experiment, document, "the test").to_bytes())
        run.dataset.write_bytes(DatasetRecord(classes=classes, dataset_sha256="0" * 64).to_bytes())
    wishes = check_wishes([tmp_path / "one", tmp_path / "other"], tmp_path / "report", None, "val", (), 24, None, 1)
    with pytest.raises(DataError, match=r"the classes of .*/other are cat, dog, those of .*/one are benign, melanoma"):
        run_report(wishes, pytest.fail)


def test_nothing_but_an_old_report_is_replaced(tmp_path: Path) -> None:
    def check(out: Path) -> None:
        check_place(out, *paths(out, 1))

    folder = tmp_path / "photos"
    for out in (folder, folder / "report.html"):
        check(out)  # not there yet
    folder.mkdir()
    check(folder)
    (folder / "cat.jpg").touch()
    with pytest.raises(ConfigError, match=r"photos is not empty and holds no report.*--out .*/photos/report\.html"):
        check(folder)
    check(folder / "report.html")
    for name, theirs, ours in (("report.html", "<title>My report", "<title>Report: x"),
                               ("report.md", "# Mine", "# Model card\nThe facts were filled in by distrib 0.1.0")):
        (folder / name).write_text(theirs)
        with pytest.raises(ConfigError, match=rf"{name} exists, and no report wrote it"):
            check(folder / "report.html")
        (folder / name).write_text(ours)
        check(folder / "report.html")
    check(folder)  # which holds a report now


@pytest.mark.parametrize(("num_classes", "folded"), [(2, 0), (4, 8)])
def test_curves_and_thresholds_of_many_classes_are_folded(make_dataset: MakeDataset, tmp_path: Path, num_classes: int,
                                                          folded: int) -> None:
    manifest = load_manifest(folder := make_dataset(train=8, val=24, classes=num_classes))
    samples, random = manifest.samples("val"), np.random.default_rng(0)
    experiment = validate(Experiment, {"data": {"dataset": str(folder)}, "model": {"name": "small_cnn"}}, "the test")
    identity: dict[str, Any] = {
        "kind": "run", "runtime": "torch fp32", "checkpoint": "step-1", "weights_sha256": "0" * 64, "step": 1,
        "finished": True, "num_parameters": 9, "trained_on_sha256": manifest.sha256}
    subject = Subject(lambda _: np.zeros((0, 0), np.float32), 1, experiment, manifest.classes, None, EvalTransform(8),
                      identity)
    logits_NK = random.normal(size=(len(samples), num_classes)).astype(np.float32)
    several = [judge_target(letter, Scored(tmp_path / letter, subject, folder, manifest, samples, logits_NK),
                            experiment.evaluate, {}, 0, 0, pytest.fail) for letter in "AB"]
    page = render_page(Content(several, manifest, "val", [], "accuracy", datetime.now(UTC), "0"))
    curves, thresholds = (re.split(r"</?section", page.partition(f'<section id="{name}">')[2])[0]
                          for name in ("curves", "thresholds"))
    assert (curves + thresholds).count('<details class="fold">') == folded
    shown = num_classes if folded else 1
    assert (curves.count("<svg"), thresholds.count("<table")) == (2 * shown, 2 * shown)  # two charts, two models
    for part in (curves, thresholds):
        outside = re.sub(r"(?s)<details.*?</details>", "", part)
        assert ("<svg" in outside or "<table" in outside) is not bool(folded)
