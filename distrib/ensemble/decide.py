"""From the members' answers on held-out samples to weights, temperature and threshold. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from distrib.config import EvaluateConfig
from distrib.decision import Threshold, positive_index, softmax
from distrib.ensemble.combine import (
    HOTTEST,
    Ranks,
    Score,
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
from distrib.ensemble.wishes import Wishes, check_classes, check_out_of_fold
from distrib.metrics import Floats, Labels, goodness, measure, validate

_STEPS_A_MEMBER, _FEWEST_STEPS = 2, 10  # of a greedy choice


@dataclass(frozen=True)
class Decided:
    """How the members become one; parallel to them."""

    weights_M: Floats
    alone_M: list[float]
    adds_M: list[float | None]
    value: float
    validation: dict[str, Any]
    """The report of the ensemble on what it was chosen on; out of fold, that of single members."""
    num_samples: int
    member_t: float = 1.0
    temperature: float = 1.0
    offset: float = 0.0
    ranks: list[Ranks] | None = None
    path: tuple[tuple[int, float], ...] = ()
    notes: list[str] = field(default_factory=list)

    @property
    def threshold(self) -> Threshold | None:
        """The one chosen on those samples."""
        recorded = self.validation["threshold"]
        return None if recorded is None else Threshold.model_validate(recorded)


def decide_on_split(logits_MVNK: Floats, labels_N: Labels, classes: Sequence[str], config: EvaluateConfig,
                    wishes: Wishes) -> Decided:
    """Everything, on samples that no member was trained on. Raises ConfigError, DataError."""
    positive = positive_index(classes, config.positive_class)
    ranks = None
    check_classes(wishes, len(classes))
    if wishes.combine == "rank" and positive is not None:
        ranks = [ranks_of(log_odds_of(logits_VNK, positive).ravel()) for logits_VNK in logits_MVNK]
        votes_MNK = np.stack([rank_votes(log_odds_of(logits_VNK, positive), rank, positive)
                              for logits_VNK, rank in zip(logits_MVNK, ranks, strict=True)])
    else:
        votes_MNK = _probabilities(logits_MVNK)
    score = _score(labels_N, classes, config)
    num_members = len(votes_MNK)
    weights_M, path = np.full(num_members, 1 / num_members), tuple[tuple[int, float], ...]()
    if wishes.select == "greedy":
        choice = greedy(votes_MNK, score, max(_FEWEST_STEPS, _STEPS_A_MEMBER * num_members))
        weights_M = choice.weights_M
        path = tuple((member, abs(value)) for member, value in choice.path)
    if wishes.combine == "weights":
        chosen = np.flatnonzero(weights_M)
        weights_M = np.zeros(num_members)
        weights_M[chosen] = fit_weights(votes_MNK[chosen], labels_N)
    temperature, offset, notes = 1.0, 0.0, list[str]()
    raw_NK = combined(votes_MNK, weights_M)
    if wishes.combine == "rank" and positive is not None:  # a mean rank is no probability until it is made one
        temperature, offset = fit_platt(log_odds_of(raw_NK, positive), labels_N == positive)
    elif wishes.calibrate == "temperature":
        temperature, notes = _temperature(raw_NK, labels_N)

    def final(logits_NK: Floats) -> Floats:
        return calibrated(logits_NK, temperature, offset, positive)

    return Decided(
        weights_M, [abs(score(combined(votes_NK[None], np.ones(1)))[0]) for votes_NK in votes_MNK],
        what_each_adds(votes_MNK, weights_M, lambda logits_NK: score(final(logits_NK))),
        abs(score(final(raw_NK))[0]), validate(final(raw_NK), labels_N, classes, config), len(labels_N),
        temperature=temperature, offset=offset, ranks=ranks, path=path, notes=notes)


def decide_out_of_fold(logits: Sequence[Floats], labels: Sequence[Labels], classes: Sequence[str],
                       config: EvaluateConfig, wishes: Wishes) -> Decided:
    """Of folds: the plain mean, and temperature and threshold from each member's logits_VNK on its own fold.

    Nothing else can be decided honestly: every sample was trained on by all members but one. Raises ConfigError.
    """
    check_out_of_fold(wishes)
    pooled_N = np.concatenate(labels)
    member_t, notes = 1.0, list[str]()
    if wishes.calibrate == "temperature":
        views = [(logits_NK, labels_N) for logits_VNK, labels_N in zip(logits, labels, strict=True)
                 for logits_NK in logits_VNK]
        member_t, notes = _temperature(np.concatenate([one for one, _ in views]),
                                       np.concatenate([one for _, one in views]))
    votes = [_probabilities(logits_VNK[None] / member_t)[0] for logits_VNK in logits]
    pooled_NK = combined(np.concatenate(votes)[None], np.ones(1))
    alone = [abs(_score(labels_N, classes, config)(combined(votes_NK[None], np.ones(1)))[0])
             for votes_NK, labels_N in zip(votes, labels, strict=True)]
    return Decided(np.full(len(votes), 1 / len(votes)), alone, [None] * len(votes),
                   abs(_score(pooled_N, classes, config)(pooled_NK)[0]),
                   validate(pooled_NK, pooled_N, classes, config), len(pooled_N), member_t=member_t, notes=notes)


def _probabilities(logits_MVNK: Floats) -> Floats:
    """votes_MNK: the mean over views of the probabilities."""
    num_classes = logits_MVNK.shape[-1]
    result: Floats = softmax(logits_MVNK.reshape(-1, num_classes)).reshape(logits_MVNK.shape).mean(axis=1)
    return result


def _temperature(logits_NK: Floats, labels_N: Labels) -> tuple[float, list[str]]:
    found = fit_temperature(logits_NK, labels_N)
    if found is None:
        return 1.0, [f"note: no temperature from {1 / HOTTEST:g} to {HOTTEST:g} is best on these samples, as when all "
                     "labels are right; probabilities are left as they are"]
    return found, []


def _score(labels_N: Labels, classes: Sequence[str], config: EvaluateConfig) -> Score:
    """evaluate.metric; of equal ones, the log loss decides."""
    def score(logits_NK: Floats) -> tuple[float, float]:
        report = measure(logits_NK, labels_N, classes, config)
        return goodness(report, config.metric), -float(report["loss"])

    return score
