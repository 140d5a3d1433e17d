"""An ensemble's arithmetic, against closed forms and other people's solvers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize, minimize_scalar
from torch import nn

from distrib.decision import log_softmax, softmax
from distrib.ensemble.combine import (
    calibrated,
    combined,
    fit_platt,
    fit_temperature,
    fit_weights,
    greedy,
    log_odds_of,
    rank_votes,
    ranks_of,
    what_each_adds,
)
from distrib.ensemble.module import EnsembleModel, Ranking, Shrink, area_weights
from distrib.metrics import Floats, Labels


def made(num_members: int = 4, num_samples: int = 200, num_classes: int = 3, seed: int = 0) -> tuple[Floats, Labels]:
    """(logits_MNK of members that are more and more wrong, labels_N)."""
    rng = np.random.default_rng(seed)
    labels_N = rng.integers(num_classes, size=num_samples)
    truth_NK = 2.0 * (labels_N[:, None] == np.arange(num_classes))
    return np.stack([truth_NK + rng.normal(0, 1 + member, (num_samples, num_classes))
                     for member in range(num_members)]), labels_N


def loss(logits_NK: Floats, labels_N: Labels) -> float:
    return float(-log_softmax(logits_NK)[np.arange(len(labels_N)), labels_N].mean())


def votes_of(logits_MNK: Floats) -> Floats:
    return np.stack([softmax(logits_NK) for logits_NK in logits_MNK])


def test_the_combination_is_the_mean_of_probabilities() -> None:
    logits_MNK, _ = made()
    votes_MNK = votes_of(logits_MNK)
    np.testing.assert_allclose(softmax(combined(votes_MNK, np.array([2.0, 1, 0, 1]))),
                               0.5 * votes_MNK[0] + 0.25 * votes_MNK[1] + 0.25 * votes_MNK[3], atol=1e-12)


def test_greedy_takes_what_helps_most_and_stops_at_the_best() -> None:
    """Two members that are each right where the other is not, one that is nearly as good, and one of noise."""
    labels_N = np.zeros(4, dtype=np.int64)
    first_N = np.array([[0.9, 0.9, 0.2, 0.9], [0.2, 0.6, 0.95, 0.6], [0.9, 0.9, 0.1, 0.9], [0.1, 0.1, 0.1, 0.1]])
    votes_MNK = np.stack([first_N, 1 - first_N], axis=2)

    def score(logits_NK: Floats) -> tuple[float, float]:
        return float((logits_NK.argmax(axis=1) == labels_N).mean()), -loss(logits_NK, labels_N)

    choice = greedy(votes_MNK, score, 10)
    assert choice.path[0] == (0, 0.75)
    assert choice.path[1] == (1, 1.0)
    assert choice.weights_M[3] == 0
    assert choice.weights_M.sum() == pytest.approx(1)
    assert score(combined(votes_MNK, choice.weights_M))[0] == choice.path[-1][1] == 1.0
    for member, weight in enumerate(choice.weights_M):
        assert weight == pytest.approx(sum(taken == member for taken, _ in choice.path) / len(choice.path))
    adds = what_each_adds(votes_MNK, np.array([0.5, 0.5, 0, 0]), score)
    assert adds == [0.25, 0.25, 0.0, 0.0]  # alone, the other has 0.75
    assert what_each_adds(votes_MNK, np.array([1.0, 0, 0, 0]), score) == [None, 0.0, 0.0, 0.0]


@settings(max_examples=20)
@given(seed=st.integers(0, 10_000))
def test_greedy_is_no_worse_than_the_best_member(seed: int) -> None:
    logits_MNK, labels_N = made(seed=seed, num_samples=40)
    votes_MNK = votes_of(logits_MNK)

    def score(logits_NK: Floats) -> tuple[float, float]:
        return -loss(logits_NK, labels_N), 0.0

    choice = greedy(votes_MNK, score, 8)
    best = max(score(combined(votes_NK[None], np.ones(1)))[0] for votes_NK in votes_MNK)
    assert score(combined(votes_MNK, choice.weights_M))[0] >= best - 1e-12
    assert choice.path[-1][1] == pytest.approx(score(combined(votes_MNK, choice.weights_M))[0])


@pytest.mark.parametrize("seed", range(3))
def test_weights_have_the_least_loss_on_the_simplex(seed: int) -> None:
    logits_MNK, labels_N = made(seed=seed)
    votes_MNK = votes_of(logits_MNK)
    found_M = fit_weights(votes_MNK, labels_N)
    theirs = minimize(lambda w_M: loss(combined(votes_MNK, w_M), labels_N), np.full(4, 0.25), method="SLSQP",
                      bounds=[(0, 1)] * 4, constraints={"type": "eq", "fun": lambda w_M: w_M.sum() - 1},
                      options={"ftol": 1e-12})
    assert found_M.sum() == pytest.approx(1)
    assert (found_M >= 0).all()
    assert loss(combined(votes_MNK, found_M), labels_N) <= theirs.fun + 1e-5
    np.testing.assert_allclose(found_M, theirs.x, atol=5e-3)


@pytest.mark.parametrize("member", range(3))
def test_the_temperature_has_the_least_loss(member: int) -> None:
    logits_MNK, labels_N = made()
    found = fit_temperature(logits_MNK[member], labels_N)
    theirs = minimize_scalar(lambda log_t: loss(logits_MNK[member] / np.exp(log_t), labels_N), bounds=(-3, 3),
                             method="bounded", options={"xatol": 1e-8})
    assert found == pytest.approx(float(np.exp(theirs.x)), rel=1e-4)


def test_labels_that_are_all_right_leave_no_temperature() -> None:
    labels_N = np.arange(30) % 3
    assert fit_temperature(5.0 * (labels_N[:, None] == np.arange(3)), labels_N) is None
    assert fit_temperature(5.0 * (labels_N[:, None] != np.arange(3)), labels_N) is None  # all wrong


def test_platt_finds_the_slope_and_offset_that_made_the_labels() -> None:
    """Logistic regression without a penalty; the smoothed targets make a small difference."""
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(0)
    scores_N = rng.normal(0, 1, 4000)
    truth_N = rng.random(4000) < 1 / (1 + np.exp(-(3 * scores_N - 1)))
    temperature, offset = fit_platt(scores_N, truth_N)
    theirs = LogisticRegression(C=1e9).fit(scores_N[:, None], truth_N)
    assert 1 / temperature == pytest.approx(theirs.coef_[0, 0], rel=0.01)
    assert offset == pytest.approx(theirs.intercept_[0], abs=0.02)
    temperature, offset = fit_platt(np.where(truth_N, 1.0, -1.0), truth_N)  # separable: the targets keep it finite
    assert np.isfinite([temperature, offset]).all()


def test_ranks_keep_the_order_and_share_ties() -> None:
    log_odds_N = np.array([-3.0, -1.0, -1.0, 0.0, 2.0, 50.0])
    ranks = ranks_of(log_odds_N)
    np.testing.assert_allclose(ranks(np.array([-3.0, 50.0])), [0.5 / 6, 5.5 / 6])
    assert ranks(np.array([-1.0]))[0] == pytest.approx(2 / 6, abs=0.05)
    np.testing.assert_allclose(ranks(np.array([-99.0, 99.0])), [0.5 / 6, 5.5 / 6])
    many_N = np.random.default_rng(0).normal(0, 3, 1000)
    order = ranks_of(many_N)(np.sort(many_N))
    assert (np.diff(order) >= 0).all()
    assert order.mean() == pytest.approx(0.5, abs=0.01)
    assert ranks_of(np.zeros(5))(np.array([-1.0, 0.0, 1.0])) == pytest.approx([0.5, 0.5, 0.5])
    a_VN = np.stack([many_N, many_N])
    np.testing.assert_allclose(rank_votes(a_VN, ranks_of(many_N), 1)[:, 1], rank_votes(a_VN, ranks_of(many_N), 0)[:, 0])


class Fixed(nn.Module):
    """A linear model of pixels."""

    def __init__(self, side: int, num_classes: int, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.linear = nn.Linear(side * side * 3, num_classes)

    def forward(self, images_NHWC: torch.Tensor) -> torch.Tensor:
        logits_NK: torch.Tensor = self.linear(images_NHWC.to(torch.float32).flatten(1) / 64)
        return logits_NK


@pytest.mark.parametrize("tta", ["none", "hflip", "flips"])
@pytest.mark.parametrize("positive", [None, 0, 1])
def test_the_module_computes_what_was_decided_with(tta: str, positive: int | None) -> None:
    """With ``positive``, a rank mean."""
    rng = np.random.default_rng(1)
    images_NHWC = rng.integers(0, 256, (20, 8, 8, 3), dtype=np.uint8)
    num_classes = 3 if positive is None else 2
    members = [Fixed(8, num_classes, seed) for seed in range(3)]
    views = {"none": [images_NHWC], "hflip": [images_NHWC, images_NHWC[:, :, ::-1]],
             "flips": [images_NHWC, images_NHWC[:, :, ::-1], images_NHWC[:, ::-1], images_NHWC[:, ::-1, ::-1]]}[tta]
    with torch.no_grad():
        logits_MVNK = np.stack([[member(torch.from_numpy(view.copy())).numpy() for view in views]
                                for member in members]).astype(np.float64)
    weights_M = np.array([0.5, 0.3, 0.2])
    rankings = None
    if positive is None:
        votes_MNK = softmax(logits_MVNK.reshape(-1, num_classes) / 1.5).reshape(logits_MVNK.shape).mean(axis=1)
    else:
        odds_MVN = np.stack([log_odds_of(one, positive) for one in logits_MVNK])
        ranks = [ranks_of(one.ravel()) for one in odds_MVN]
        votes_MNK = np.stack([rank_votes(one, rank, positive) for one, rank in zip(odds_MVN, ranks, strict=True)])
        rankings = [Ranking(rank, positive) for rank in ranks]
    expected_NK = calibrated(combined(votes_MNK, weights_M), 0.7, 0.4, positive)
    module = EnsembleModel(members, list(weights_M), tta, num_classes=num_classes, rankings=rankings, member_t=1.5,
                           temperature=0.7, offset=0.4, positive=positive).eval()
    with torch.no_grad():
        found_NK = module(torch.from_numpy(images_NHWC)).numpy()
    np.testing.assert_allclose(np.exp(found_NK), np.exp(expected_NK), atol=2e-5)


@given(small=st.integers(1, 40), more=st.integers(0, 40))
@settings(max_examples=50)
def test_shrinking_is_a_mean(small: int, more: int) -> None:
    weights = area_weights(small + more, small)
    np.testing.assert_allclose(weights.sum(axis=1), 1)
    np.testing.assert_allclose(weights.sum(axis=0), small / (small + more))  # every pixel counts alike


def test_shrinking_by_a_whole_number_is_that_of_opencv() -> None:
    import cv2

    image = np.random.default_rng(0).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    found = Shrink(12, 4)(torch.from_numpy(image[None]))[0].numpy()
    np.testing.assert_allclose(found, cv2.resize(image.astype(np.float32), (4, 4), interpolation=cv2.INTER_AREA),
                               atol=1e-3)
