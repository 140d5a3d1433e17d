"""How several models' answers become one, and which of them are worth it. Pure; numpy only.

*Votes* are what is averaged, float64 [M, N, K] of M members, rows sum to 1: probabilities or, for a rank mean of two
classes, ranks between 0 and 1. The combination is log(sum over members of weight * vote), as logits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from distrib.decision import log_softmax, softmax
from distrib.metrics import Floats, Labels

LEAST_VOTE = 1e-30
"""Votes below count as this: what float32 can hold, and a logarithm."""
HOTTEST = 20.0
"""Temperatures lie between this and its inverse."""
_LEAST_WEIGHT = 1e-3  # a fitted weight below is none: the member would cost more than it says
_LEVELS = 129  # knots of a member's ranks

Score = Callable[[Floats], tuple[float, float]]
"""logits_NK to a number of which more is better, and a second one that decides between equal ones."""


def combined(votes_MNK: Floats, weights_M: Floats) -> Floats:
    """logits_NK of the weighted mean of the votes; weights of 0 or more, of any sum above 0."""
    mean_NK = np.tensordot(weights_M / weights_M.sum(), votes_MNK, axes=1)
    result: Floats = np.log(np.maximum(mean_NK, LEAST_VOTE))
    return result


@dataclass(frozen=True)
class Greedy:
    """What a greedy choice found."""

    weights_M: Floats
    """How often each member was taken, as parts of 1."""
    path: tuple[tuple[int, float], ...]
    """(member, score with it) of every step that was kept."""


def greedy(votes_MNK: Floats, score: Score, steps: int) -> Greedy:
    """Add the member that helps the score most, again and again, members again too; keep the best beginning.

    Caruana, Niculescu-Mizil, Crew and Ksikes, "Ensemble selection from libraries of models", ICML 2004, section 2 and
    2.1 (selection with replacement). Of equal members the first is taken, of equal beginnings the shortest.
    """
    num_members = len(votes_MNK)
    sum_NK = np.zeros_like(votes_MNK[0])
    taken: list[int] = []
    scores: list[tuple[float, float]] = []
    for step in range(1, steps + 1):
        tried = [score(np.log(np.maximum((sum_NK + votes_MNK[member]) / step, LEAST_VOTE)))
                 for member in range(num_members)]
        best = max(range(num_members), key=lambda member: (tried[member], -member))
        taken.append(best)
        scores.append(tried[best])
        sum_NK += votes_MNK[best]
    length = 1 + max(range(steps), key=lambda step: (scores[step], -step))
    counts_M = np.bincount(taken[:length], minlength=num_members)
    return Greedy(counts_M / length, tuple((taken[step], scores[step][0]) for step in range(length)))


def fit_weights(votes_MNK: Floats, labels_N: Labels, rounds: int = 5000) -> Floats:
    """weights_M on the simplex of the least mean log loss of the combination; small ones are set to 0.

    The likelihood of a mixture of fixed parts is concave in its proportions, and expectation maximisation climbs it
    without leaving the simplex (Dempster, Laird and Rubin, 1977, section 4.3).
    """
    likelihood_MN = np.maximum(votes_MNK[:, np.arange(len(labels_N)), labels_N], LEAST_VOTE)
    weights_M = np.full(len(votes_MNK), 1 / len(votes_MNK))
    for _ in range(rounds):
        gains_M = (likelihood_MN / (weights_M @ likelihood_MN)).mean(axis=1)
        weights_M = weights_M * gains_M
        if gains_M.max() < 1 + 1e-9:  # no direction climbs any more
            break
    weights_M = np.where(weights_M < _LEAST_WEIGHT, 0.0, weights_M)
    result: Floats = weights_M / weights_M.sum()
    return result


def fit_temperature(logits_NK: Floats, labels_N: Labels) -> float | None:
    """The T whose softmax(logits / T) has the least mean log loss (Guo et al., "On Calibration of Modern Neural
    Networks", 2017, section 4.2); None where none is best, as when every label is right.

    The loss is convex in 1 / T, so that its slope has one zero, found by bisection.
    """
    def slope(inverse: float) -> float:
        expected_N = (softmax(logits_NK * inverse) * logits_NK).sum(axis=1)
        return float((expected_N - logits_NK[np.arange(len(labels_N)), labels_N]).mean())

    low, high = 1 / HOTTEST, HOTTEST
    if slope(low) >= 0 or slope(high) <= 0:
        return None
    for _ in range(60):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return float(1 / (low * high) ** 0.5)


def fit_platt(log_odds_N: Floats, truth_N: np.ndarray[tuple[int, ...], np.dtype[np.bool_]]) -> tuple[float, float]:
    """(T, offset) such that sigmoid(log_odds / T + offset) has the least log loss, with the smoothed targets of Platt,
    "Probabilistic outputs for support vector machines", 1999, section 2.2. For scores that are no probabilities.
    """
    num_positive, num_negative = int(truth_N.sum()), int((~truth_N).sum())
    target_N = np.where(truth_N, (num_positive + 1) / (num_positive + 2), 1 / (num_negative + 2))
    design_N2 = np.stack([log_odds_N, np.ones_like(log_odds_N)], axis=1)

    def loss(x_2: Floats) -> float:
        z_N = design_N2 @ x_2
        return float((np.logaddexp(0, z_N) - target_N * z_N).mean())

    x_2 = np.array([1.0, 0.0])
    for _ in range(100):  # Newton's method, each step halved until it descends
        probability_N = 1 / (1 + np.exp(-np.clip(design_N2 @ x_2, -500, 500)))
        slope_2 = design_N2.T @ (probability_N - target_N) / len(target_N)
        curvature_22 = (design_N2.T * (probability_N * (1 - probability_N))) @ design_N2 / len(target_N)
        step_2 = np.linalg.solve(curvature_22 + 1e-9 * np.eye(2), slope_2)
        scale = 1.0
        while scale > 1e-6 and loss(x_2 - scale * step_2) > loss(x_2):
            scale /= 2
        x_2 = x_2 - scale * step_2
        if np.abs(scale * step_2).max() < 1e-9:
            break
    slope = max(float(x_2[0]), 1 / HOTTEST)  # a ranking is never turned over
    return 1 / slope, float(x_2[1])


def calibrated(logits_NK: Floats, temperature: float, offset: float, positive: int | None) -> Floats:
    """Log-probabilities of logits / temperature, ``offset`` added to the positive class."""
    shifted_NK = logits_NK / temperature
    if positive is not None:
        shifted_NK[:, positive] += offset
    return log_softmax(shifted_NK)


@dataclass(frozen=True)
class Ranks:
    """A member's log-odds to its rank among its own answers, between 0 and 1: piecewise linear, flat outside."""

    knots_J: Floats
    """Log-odds, rising."""
    levels_J: Floats

    def __call__(self, log_odds: Floats) -> Floats:
        return np.interp(log_odds, self.knots_J, self.levels_J)


def ranks_of(log_odds_N: Floats) -> Ranks:
    """The quantiles of these answers; answers that are equal share the middle of their ranks."""
    num_levels = min(len(log_odds_N), _LEVELS)
    levels_J = (np.arange(num_levels) + 0.5) / num_levels
    knots_J = np.quantile(log_odds_N, levels_J, method="hazen")  # whose levels these are
    unique_J, place = np.unique(knots_J, return_inverse=True)
    shared_J = np.bincount(place, levels_J) / np.bincount(place)
    if len(unique_J) == 1:  # it answers the same to all
        unique_J, shared_J = np.array([unique_J[0], unique_J[0] + 1]), np.repeat(shared_J, 2)
    return Ranks(unique_J, shared_J)


def log_odds_of(logits_NK: Floats, positive: int) -> Floats:
    """Of the positive one of two classes, shape [N]."""
    result: Floats = logits_NK[..., positive] - logits_NK[..., 1 - positive]
    return result


def rank_votes(log_odds_VN: Floats, ranks: Ranks, positive: int) -> Floats:
    """votes_NK of one member: the mean over views of the rank, and what is left of 1."""
    mean_N = ranks(log_odds_VN).mean(axis=0)
    columns: Sequence[Floats] = (mean_N, 1 - mean_N) if positive == 0 else (1 - mean_N, mean_N)
    return np.stack(columns, axis=1)


def what_each_adds(votes_MNK: Floats, weights_M: Floats, score: Score) -> list[float | None]:
    """By how much the score is better with each member than with the others alone, their weights kept in proportion.

    0 for a member of weight 0; None for the only one.
    """
    whole = score(combined(votes_MNK, weights_M))[0]
    result: list[float | None] = []
    for member, weight in enumerate(weights_M):
        others_M = np.where(np.arange(len(weights_M)) == member, 0.0, weights_M)
        if not weight:
            result.append(0.0)
        elif not others_M.any():
            result.append(None)
        else:
            result.append(whole - score(combined(votes_MNK, others_M))[0])
    return result
