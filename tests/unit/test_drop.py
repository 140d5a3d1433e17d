"""What the gate of reduced formats says of chance."""

from __future__ import annotations

import numpy as np
import pytest

from distrib.bundle import FormatGate
from distrib.config import EvaluateConfig
from distrib.export.drop import chance_lines, judge

CLASSES = ("cat", "dog")


def gate(num_samples: int, wrong: int, *, metric: str = "accuracy", per_group: int = 1,
         max_drop: float = 0.5) -> FormatGate:
    """Of a format that errs on so many samples, where the exact one never does."""
    labels_N = np.arange(num_samples) % 2
    exact_NK = np.where(labels_N[:, None] == np.arange(2), 4.0, -4.0).astype(np.float32)
    reduced_NK = exact_NK.copy()
    reduced_NK[:wrong] *= -1
    groups = [str(number // per_group) for number in range(num_samples)]
    config = EvaluateConfig.model_validate({"metric": metric})
    return judge("int8", exact_NK, reduced_NK, labels_N, groups, CLASSES, config, None, max_drop)


@pytest.mark.parametrize(("metric", "reach"), [("accuracy", 2 / 20), ("balanced_accuracy", 1 / 10), ("auroc", 2 / 10),
                                               ("loss", 0.0)])
def test_no_drop_on_few_images_is_no_proof(metric: str, reach: float) -> None:
    one = gate(20, 0, metric=metric)
    assert one.drop == 0
    assert (one.drop_low, one.drop_high) == pytest.approx((-reach, reach))


def test_images_of_one_group_count_once() -> None:
    assert gate(40, 0, per_group=4).drop_high == pytest.approx(2 / 10)


def test_the_interval_of_a_drop_is_paired() -> None:
    one = gate(1000, 50)
    assert one.drop_low is not None
    assert one.drop_high is not None
    half = 1.96 * (0.05 * 0.95 / 1000) ** 0.5
    assert one.drop == pytest.approx(0.05)
    assert (one.drop_low, one.drop_high) == pytest.approx((0.05 - half, 0.05 + half), abs=0.003)


def test_a_warning_where_the_images_are_too_few() -> None:
    few, enough = (chance_lines("int8", gate(number, 0), number, 0.005) for number in (20, 400))
    assert few == ["int8: 95% interval of the drop -0.1 to +0.1, from 20 val images",
                   "warning: 20 val images can not show that int8 is worse by no more than --max-drop 0.005: a drop of "
                   "0.1 could be there unseen; a larger validation split tells more"]
    assert enough == ["int8: 95% interval of the drop -0.005 to +0.005, from 400 val images"]
