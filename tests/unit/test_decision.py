"""Probabilities, the threshold and the label."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray
from sklearn.metrics import roc_curve

from distrib.decision import Threshold, choose_threshold, decide, log_softmax, positive_index, softmax
from distrib.errors import ConfigError

CLASSES = ("benign", "melanoma")
LOGITS = arrays(np.float32, array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=9),
                elements=st.floats(-50, 50, width=32))


def binary(scores: list[float]) -> NDArray[np.float64]:
    positive = np.array(scores)
    return np.stack([1 - positive, positive], axis=1)


@given(LOGITS)
def test_softmax_of_a_row_does_not_depend_on_the_others(logits_NK: NDArray[np.float32]) -> None:
    together = softmax(logits_NK)
    for row, one in enumerate(together):
        assert np.array_equal(softmax(logits_NK[row:row + 1])[0], one)
        assert np.array_equal(log_softmax(logits_NK[row:row + 1])[0], log_softmax(logits_NK)[row])
    np.testing.assert_allclose(together.sum(axis=1), 1)
    np.testing.assert_allclose(np.exp(log_softmax(logits_NK)), together, rtol=1e-12)


def test_softmax_of_extreme_logits_is_finite_and_does_not_warn() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        probabilities = softmax(np.array([[3e38, -3e38], [-3e38, -3e38]], dtype=np.float32))
    assert probabilities.tolist() == [[1, 0], [0.5, 0.5]]


def test_without_a_threshold_the_first_of_the_largest_is_the_label() -> None:
    probabilities = np.array([[0.4, 0.4, 0.2], [0.1, 0.4, 0.5]])
    assert decide(probabilities, ("a", "b", "c"), None).tolist() == [0, 2]


@pytest.mark.parametrize(("positive", "expected"), [("melanoma", [0, 1, 1]), ("benign", [0, 0, 1])])
def test_a_probability_equal_to_the_threshold_is_positive(positive: str, expected: list[int]) -> None:
    value = 0.25 if positive == "melanoma" else 0.75
    threshold = Threshold(value=value, positive_class=positive, sensitivity=1, specificity=1, num_samples=1)
    probabilities = binary([0.2, 0.25, 0.3])
    assert decide(probabilities, CLASSES, threshold).tolist() == expected


def test_threshold_by_hand() -> None:
    # Called positive from 0.6 up: 2 of 3 hits, no false alarm, J = 2/3. From 0.3 up: 3 of 3, 1 of 2, J = 1/2.
    chosen = choose_threshold(binary([0.1, 0.3, 0.4, 0.6, 0.9]), np.array([0, 1, 0, 1, 1]), CLASSES)
    assert chosen is not None
    assert (chosen.value, chosen.positive_class, chosen.num_samples) == (0.5, "melanoma", 5)
    assert [chosen.sensitivity, chosen.specificity] == pytest.approx([2 / 3, 1])


def test_of_equal_j_the_more_sensitive_threshold_is_chosen() -> None:
    # From 0.8 up: sensitivity 1/2, specificity 1. From 0.2 up: sensitivity 1, specificity 1/2. J = 1/2 both.
    chosen = choose_threshold(binary([0.1, 0.2, 0.5, 0.8]), np.array([0, 1, 0, 1]), CLASSES)
    assert chosen is not None
    assert chosen.sensitivity == 1
    assert chosen.value == pytest.approx(0.15)


def test_threshold_of_constant_scores_calls_everything_positive() -> None:
    chosen = choose_threshold(binary([0.5, 0.5]), np.array([0, 1]), CLASSES)
    assert chosen is not None
    assert decide(binary([0.5, 0.5]), CLASSES, chosen).tolist() == [1, 1]


def test_threshold_between_neighbouring_floats_separates_them() -> None:
    low, high = 0.3, float(np.nextafter(0.3, 1))
    probabilities = binary([low, high])
    chosen = choose_threshold(probabilities, np.array([0, 1]), CLASSES)
    assert chosen is not None
    assert decide(probabilities, CLASSES, chosen).tolist() == [0, 1]


def test_no_threshold_where_it_means_nothing() -> None:
    assert choose_threshold(binary([0.5]), np.array([1]), CLASSES) is None
    assert choose_threshold(np.full((2, 3), 1 / 3), np.array([0, 1]), ("a", "b", "c")) is None


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 20), st.booleans()), min_size=2, max_size=40))
def test_threshold_has_the_largest_j_of_all_and_its_recorded_rates(samples: list[tuple[int, bool]]) -> None:
    labels = np.array([int(positive) for _, positive in samples])
    if labels.min() == labels.max():
        return
    probabilities = binary([score / 20 for score, _ in samples])
    chosen = choose_threshold(probabilities, labels, CLASSES)
    assert chosen is not None
    fpr, tpr, _ = roc_curve(labels, probabilities[:, 1], drop_intermediate=False)
    assert chosen.sensitivity + chosen.specificity - 1 == pytest.approx((tpr - fpr)[1:].max())
    called = decide(probabilities, CLASSES, chosen) == 1
    assert called[labels == 1].mean() == pytest.approx(chosen.sensitivity)
    assert (~called[labels == 0]).mean() == pytest.approx(chosen.specificity)


def test_positive_class() -> None:
    assert positive_index(CLASSES, None) == 1
    assert positive_index(CLASSES, "benign") == 0
    assert positive_index(("a", "b", "c"), None) is None
    with pytest.raises(ConfigError, match="'mole', but the classes are benign, melanoma"):
        positive_index(CLASSES, "mole")
    with pytest.raises(ConfigError, match="Leave it out"):
        positive_index(("a", "b", "c"), "a")
