"""Point values against scikit-learn and by hand; intervals against scikit-learn's weights."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn import metrics as sk

from distrib.config import EvaluateConfig
from distrib.decision import Threshold, softmax
from distrib.errors import DataError
from distrib.intervals import RocCurves, bootstrap_intervals
from distrib.metrics import calibration_error, goodness, measure, partial_auroc, validate

CONFIG = EvaluateConfig()
BINARY = ("benign", "melanoma")


def logits_of(probabilities: Any) -> NDArray[np.float32]:
    return np.log(np.asarray(probabilities, dtype=np.float64)).astype(np.float32)


def binary(scores: list[float]) -> NDArray[np.float32]:
    positive = np.array(scores)
    return logits_of(np.stack([1 - positive, positive], axis=1))


def random_case(num_samples: int, num_classes: int, seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    random = np.random.default_rng(seed)
    labels = random.permutation(np.arange(num_samples) % num_classes)
    logits = random.normal(size=(num_samples, num_classes)).round(1).astype(np.float32)  # rounded: with ties
    logits[np.arange(num_samples), labels] += 1
    return logits, labels


def test_binary_by_hand() -> None:
    labels = np.array([0, 0, 1, 1])
    report = measure(binary([0.1, 0.6, 0.4, 0.8]), labels, BINARY, CONFIG)
    assert report["num_samples"] == 4
    assert report["accuracy"] == 0.5
    assert report["auroc"] == 0.75  # 3 of the 4 pairs are in order
    assert report["average_precision"] == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    assert report["confusion_matrix"] == [[1, 1], [1, 1]]
    assert report["brier"] == pytest.approx((0.01 + 0.36 + 0.36 + 0.04) / 4)
    assert report["loss"] == pytest.approx(-np.log([0.9, 0.4, 0.4, 0.8]).mean(), rel=1e-6)
    assert report["per_class"]["melanoma"]["precision"] == 0.5
    assert report["positive_class"] == "melanoma"
    assert report["undefined"] == {}


def test_threshold_decides_the_labels_and_nothing_else() -> None:
    logits, labels = binary([0.1, 0.6, 0.4, 0.8]), np.array([0, 0, 1, 1])
    threshold = Threshold(value=0.3, positive_class="melanoma", sensitivity=1, specificity=1, num_samples=9)
    with_it, without = measure(logits, labels, BINARY, CONFIG, threshold), measure(logits, labels, BINARY, CONFIG)
    assert with_it["accuracy"] == 0.75
    assert (with_it["sensitivity"], with_it["specificity"]) == (1, 0.5)
    assert with_it["confusion_matrix"] == [[1, 1], [0, 2]]
    for name in ("auroc", "average_precision", "partial_auroc", "loss", "brier", "calibration_error"):
        assert with_it[name] == without[name]


def test_operating_points_by_hand() -> None:
    # Thresholds from the top: (TPR, FPR) = (1/4, 0), (1/2, 0), (1/2, 1/4), (3/4, 1/4), (1, 1/4), (1, 1).
    logits = binary([0.9, 0.8, 0.7, 0.6, 0.5, 0.3, 0.2, 0.1])
    labels = np.array([1, 1, 0, 1, 1, 0, 0, 0])
    report = measure(logits, labels, BINARY, EvaluateConfig(specificity=0.75, sensitivity=0.5))
    assert report["sensitivity_at_specificity"] == 1
    assert report["specificity_at_sensitivity"] == 1
    report = measure(logits, labels, BINARY, EvaluateConfig(specificity=0.8, sensitivity=0.6))
    assert report["sensitivity_at_specificity"] == 0.5
    assert report["specificity_at_sensitivity"] == 0.75


@pytest.mark.parametrize(("scores", "labels", "expected"), [
    ([0.9, 0.8, 0.2, 0.1], [1, 1, 0, 0], 0.2),  # perfect: 1 - floor
    ([0.5, 0.5, 0.5, 0.5], [1, 1, 0, 0], 0.02),  # the diagonal: a triangle of 0.2 by 0.2
    ([0.1, 0.2, 0.8, 0.9], [1, 1, 0, 0], 0.0),  # all wrong
    ([0.9, 0.8, 0.7, 0.1], [1, 0, 1, 0], 0.1),  # up to 1/2, right to 1/2, up to 1: 0.2 high over FPR 1/2 to 1
])
def test_partial_auroc_by_hand(scores: list[float], labels: list[int], expected: float) -> None:
    truth = np.array(labels, dtype=bool)
    assert partial_auroc(truth, np.array(scores), 0.8) == pytest.approx(expected)
    assert RocCurves(np.array(scores), truth, np.ones((1, 4))).partial_auroc(0.8)[0] == pytest.approx(expected)


def test_calibration_error_by_hand() -> None:
    # Two samples at 0.9 (one right), one at 0.6 (right): bins of their own.
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6]])
    expected = (abs(1 - 1.8) + abs(1 - 0.6)) / 3
    assert calibration_error(probabilities, np.array([0, 1, 1])) == pytest.approx(expected)
    # 0.6 = 9/15 lies in the bin that it closes, 0.61 in the next.
    probabilities = np.array([[0.6, 0.4], [0.61, 0.39]])
    assert calibration_error(probabilities, np.array([0, 1])) == pytest.approx((0.4 + 0.61) / 2)


@pytest.mark.parametrize("num_classes", [2, 3, 7])
def test_agrees_with_scikit_learn(num_classes: int) -> None:
    logits, labels = random_case(200, num_classes)
    probabilities, classes = softmax(logits), [f"c{i}" for i in range(num_classes)]
    report = measure(logits, labels, classes, CONFIG)
    several = num_classes > 2
    scores = probabilities if several else probabilities[:, 1]
    onehot = np.eye(num_classes)[labels] if several else labels
    assert report["auroc"] == pytest.approx(sk.roc_auc_score(labels, scores, multi_class="ovr"))
    assert report["average_precision"] == pytest.approx(sk.average_precision_score(onehot, scores))
    assert report["loss"] == pytest.approx(sk.log_loss(labels, probabilities))
    assert report["brier"] == pytest.approx(sk.brier_score_loss(labels, scores, labels=range(num_classes)))
    predicted = probabilities.argmax(axis=1)
    assert report["balanced_accuracy"] == sk.balanced_accuracy_score(labels, predicted)
    expected = sk.classification_report(labels, predicted, target_names=classes, output_dict=True)
    for name in classes:
        for ours, theirs in (("precision", "precision"), ("recall", "recall"), ("f1", "f1-score")):
            assert report["per_class"][name][ours] == pytest.approx(expected[name][theirs])
        assert report["per_class"][name]["support"] == expected[name]["support"]


@settings(max_examples=25)
@given(st.integers(0, 1000), st.sampled_from([2, 4]))
def test_order_of_samples_does_not_matter(seed: int, num_classes: int) -> None:
    logits, labels = random_case(30, num_classes, seed)
    order = np.random.default_rng(seed).permutation(30)
    classes = [str(i) for i in range(num_classes)]
    groups = [f"g{i // 3}" for i in range(30)]
    first = measure(logits, labels, classes, CONFIG)
    second = measure(logits[order], labels[order], classes, CONFIG)
    assert _rounded(first) == _rounded(second)
    one = bootstrap_intervals(logits, labels, groups, classes, CONFIG, resamples=20)
    other = bootstrap_intervals(logits[order], labels[order], [groups[i] for i in order], classes, CONFIG,
                                resamples=20)
    assert _rounded(one) == _rounded(other)


@settings(max_examples=25)
@given(st.integers(0, 1000), st.floats(0.1, 5), st.floats(-3, 3))
def test_ranking_metrics_ignore_monotone_changes_of_the_score(seed: int, scale: float, shift: float) -> None:
    logits, labels = random_case(40, 2, seed)
    margin = logits[:, 1] - logits[:, 0]
    changed = np.stack([np.zeros_like(margin), scale * margin + np.float32(shift)], axis=1).astype(np.float32)
    plain = np.stack([np.zeros_like(margin), margin], axis=1)
    # The change must keep different scores different in float32.
    assume(len(np.unique(softmax(changed)[:, 1])) == len(np.unique(softmax(plain)[:, 1])))
    one, other = measure(plain, labels, BINARY, CONFIG), measure(changed, labels, BINARY, CONFIG)
    for name in ("auroc", "average_precision", "partial_auroc", "sensitivity_at_specificity"):
        assert one[name] == pytest.approx(other[name])


def test_exchanging_the_classes_mirrors_the_ranking() -> None:
    logits, labels = random_case(50, 2)
    one = measure(logits, labels, BINARY, CONFIG)
    other = measure(logits, labels, BINARY, EvaluateConfig(positive_class="benign"))
    assert one["auroc"] == pytest.approx(other["auroc"])
    assert (one["sensitivity"], one["specificity"]) == (other["specificity"], other["sensitivity"])


def test_absent_class_gives_null_and_a_reason() -> None:
    logits, labels = random_case(20, 3)
    labels = np.where(labels == 2, 0, labels)
    report = measure(logits, labels, ("a", "b", "c"), CONFIG)
    for name in ("auroc", "balanced_accuracy", "average_precision", "partial_auroc"):
        assert report[name] is None
        assert report["undefined"][name] == "no sample of c"
    assert report["per_class"]["c"]["auroc"] is None
    assert report["per_class"]["c"]["recall"] is None
    assert report["per_class"]["a"]["auroc"] is not None
    json.dumps(report, allow_nan=False)
    intervals = bootstrap_intervals(logits, labels, [str(i) for i in range(20)], ("a", "b", "c"), CONFIG, resamples=10)
    assert intervals["metrics"]["auroc"] == {"low": None, "high": None, "undefined_resamples": 10}
    assert intervals["metrics"]["accuracy"]["low"] is not None
    json.dumps(intervals, allow_nan=False)


@pytest.mark.parametrize("label", [0, 1])
def test_one_class_alone(label: int) -> None:
    report = measure(binary([0.2, 0.9]), np.array([label, label]), BINARY, CONFIG)
    known, unknown = ("sensitivity", "specificity")[::1 if label else -1]
    assert report["auroc"] is report[unknown] is report["sensitivity_at_specificity"] is None
    assert report[known] == 0.5
    assert known not in report["undefined"]
    assert report["undefined"][unknown]
    json.dumps(report, allow_nan=False)
    intervals = bootstrap_intervals(binary([0.2, 0.9]), np.array([label, label]), ["a", "b"], BINARY, CONFIG,
                                    resamples=5)
    for name, one in intervals["metrics"].items():  # no interval of what has no value
        assert (one["low"] is None) == (report[name] is None), name
    json.dumps(intervals, allow_nan=False)
    with pytest.raises(DataError, match="auroc is not defined on this split: no sample of"):
        goodness(report, "auroc")


def test_validate_records_a_threshold_and_goodness_knows_the_direction() -> None:
    logits, labels = random_case(50, 2)
    report = validate(logits, labels, BINARY, CONFIG)
    assert report["threshold"]["positive_class"] == "melanoma"
    assert report["threshold"]["split"] == "val"
    assert report["accuracy"] == measure(logits, labels, BINARY, CONFIG)["accuracy"]
    assert goodness(report, "loss") == -report["loss"]
    assert goodness(report, "auroc") == report["auroc"]
    json.dumps(report, allow_nan=False)
    assert validate(*random_case(50, 3), ("a", "b", "c"), CONFIG)["threshold"] is None


WEIGHTED = st.lists(st.tuples(st.integers(0, 6), st.booleans(), st.integers(0, 3)), min_size=4, max_size=30)


@settings(max_examples=100)
@given(WEIGHTED, st.sampled_from([0.0, 0.5, 0.8]))
def test_weighted_curves_agree_with_scikit_learn(samples: list[tuple[int, bool, int]], floor: float) -> None:
    scores = np.array([score / 6 for score, _, _ in samples])
    truth = np.array([positive for _, positive, _ in samples])
    weights = np.array([weight for _, _, weight in samples], dtype=np.float64)
    curves = RocCurves(scores, truth, np.stack([weights, np.ones_like(weights)]))
    for row, weight in enumerate((weights, np.ones_like(weights))):
        if not weight[truth].sum() or not weight[~truth].sum():
            assert np.isnan(curves.auroc()[row])
            assert np.isnan(curves.average_precision()[row])
            assert np.isnan(curves.sensitivity_at(0.5)[row])
            continue
        # Weights are how often a sample was drawn.
        drawn = np.repeat(np.arange(len(samples)), weight.astype(int))
        s, t = scores[drawn], truth[drawn]
        assert curves.auroc()[row] == pytest.approx(sk.roc_auc_score(truth, scores, sample_weight=weight))
        assert curves.average_precision()[row] == pytest.approx(sk.average_precision_score(t, s))
        assert curves.partial_auroc(floor)[row] == pytest.approx(partial_auroc(t, s, floor))
        fpr, tpr, _ = sk.roc_curve(t, s, drop_intermediate=False)
        assert curves.sensitivity_at(0.7)[row] == pytest.approx(tpr[1 - fpr >= 0.7 - 1e-9].max())
        assert curves.specificity_at(0.7)[row] == pytest.approx((1 - fpr)[tpr >= 0.7 - 1e-9].max())


def test_intervals_are_those_of_explicit_resampling() -> None:
    logits, labels = random_case(60, 3)
    groups = [f"patient{i // 4}" for i in range(60)]
    classes = ("a", "b", "c")
    threshold = None
    intervals = bootstrap_intervals(logits, labels, groups, classes, CONFIG, threshold, resamples=40, seed=5)
    random = np.random.default_rng(5)
    names = sorted(set(groups))
    drawn: dict[str, list[float]] = {"accuracy": [], "auroc": [], "loss": [], "calibration_error": [], "brier": [],
                                     "balanced_accuracy": []}
    for _ in range(40):
        chosen = [names[i] for i in random.integers(len(names), size=len(names))]
        rows = np.array([i for name in chosen for i in range(60) if groups[i] == name])
        report = measure(logits[rows], labels[rows], classes, CONFIG)
        for name, values in drawn.items():
            if report[name] is not None:
                values.append(report[name])
    for name, values in drawn.items():
        found = intervals["metrics"][name]
        assert [found["low"], found["high"]] == pytest.approx(list(np.percentile(values, (2.5, 97.5)))), name
        assert found["undefined_resamples"] == 40 - len(values)
    assert intervals["num_groups"] == 15


def test_binary_intervals_cover_the_point_values_and_are_repeatable() -> None:
    logits, labels = random_case(200, 2)
    groups = [str(i) for i in range(200)]
    threshold = Threshold(value=0.4, positive_class="melanoma", sensitivity=1, specificity=1, num_samples=9)
    intervals = bootstrap_intervals(logits, labels, groups, BINARY, CONFIG, threshold, resamples=100)
    assert intervals == bootstrap_intervals(logits, labels, groups, BINARY, CONFIG, threshold, resamples=100)
    assert intervals != bootstrap_intervals(logits, labels, groups, BINARY, CONFIG, threshold, resamples=100, seed=1)
    report = measure(logits, labels, BINARY, CONFIG, threshold)
    for name in ("accuracy", "auroc", "average_precision", "partial_auroc", "sensitivity", "specificity", "loss",
                 "brier", "balanced_accuracy"):
        found = intervals["metrics"][name]
        assert found["low"] < report[name] < found["high"], name


def test_groups_widen_intervals() -> None:
    # Every patient has ten equal images: ten times fewer independent samples.
    few_logits, few_labels = random_case(40, 2)
    logits, labels = np.repeat(few_logits, 10, axis=0), np.repeat(few_labels, 10)
    apart = bootstrap_intervals(logits, labels, [str(i) for i in range(400)], BINARY, CONFIG, resamples=100)
    together = bootstrap_intervals(logits, labels, [str(i // 10) for i in range(400)], BINARY, CONFIG, resamples=100)

    def width(intervals: dict[str, Any]) -> float:
        one = intervals["metrics"]["accuracy"]
        return float(one["high"] - one["low"])

    assert width(together) > 2 * width(apart)


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_rounded(inner) for inner in value]
    return round(value, 9) if isinstance(value, float) else value
