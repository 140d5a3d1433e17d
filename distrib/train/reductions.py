"""The table of reductions: from `train.reduction` to a way of summing."""

from __future__ import annotations

import torch
from torch import nn

from distrib.comm.group import Group
from distrib.config import TrainConfig
from distrib.train.exact_reduction import ExactReduction
from distrib.train.fast_reduction import FastReduction
from distrib.train.fixed_point import FixedPoint
from distrib.train.packed import PackedFixedPoint
from distrib.train.reduction import Reduction

WORDS: dict[str, type[FixedPoint]] = {"exact": FixedPoint, "exact16": PackedFixedPoint}
"""How a value is held while it is added exactly."""


def build_reduction(train: TrainConfig, group: Group, parameters: list[nn.Parameter],
                    statistic_sizes: list[int]) -> Reduction:
    """The reduction that ``train`` names."""
    if train.reduction == "fast":
        return FastReduction(group, parameters, statistic_sizes, train.lanes)
    words = WORDS[train.reduction](torch.get_num_threads())
    return ExactReduction(group, parameters, statistic_sizes, train.lanes, words)
