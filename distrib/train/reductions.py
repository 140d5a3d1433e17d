"""The table of reductions: from `train.reduction` to a way of summing."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from distrib.comm.group import Group
from distrib.config import TrainConfig
from distrib.train.compress import build_compression
from distrib.train.exact_reduction import ExactReduction
from distrib.train.fast_reduction import FastReduction
from distrib.train.fixed_point import FixedPoint
from distrib.train.packed import PackedFixedPoint
from distrib.train.reduction import Reduction
from distrib.train.step import statistic_sizes

WORDS: dict[str, Callable[[int], FixedPoint]] = {
    "exact": FixedPoint,
    "exact16": partial(PackedFixedPoint, fields=2),
    "exact10": partial(PackedFixedPoint, fields=3),
}
"""How a value is held while it is added exactly; called with the number of threads."""


def build_words(train: TrainConfig) -> FixedPoint:
    """How the reduction that ``train`` names holds values; it must be an exact one."""
    return WORDS[train.reduction](torch.get_num_threads())


def build_reduction(train: TrainConfig, group: Group, model: nn.Module, seed: int) -> Reduction:
    """The reduction that ``train`` names, for the model's trainable parameters; ``seed`` is the experiment's."""
    parameters, sizes = [p for p in model.parameters() if p.requires_grad], statistic_sizes(model)
    if train.reduction == "fast":
        return FastReduction(group, parameters, sizes, train.lanes, build_compression(train, group, seed))
    return ExactReduction(group, parameters, sizes, train.lanes, build_words(train))
