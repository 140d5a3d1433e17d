"""Loss, optimiser, learning rate, moving average: what turns gradients into weights."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from distrib.config import TrainConfig
from distrib.errors import CheckpointError, ConfigError, counted
from distrib.train.lane import LaneLoss


def class_weights(config: TrainConfig, counts: NDArray[np.int64]) -> Tensor | None:
    """Weight of each class in the loss, float32 [K]; ``counts`` are the training samples of each class.

    "balanced" is N / (K * counts), whose mean over the training samples is 1. Raises ConfigError.
    """
    if config.class_weights == "none":
        return None
    if config.class_weights == "balanced":
        if (counts == 0).any():
            raise ConfigError("train.class_weights = balanced, but a class has no training sample",
                              "its weight would be infinite", "prepare a split that holds every class")
        return torch.from_numpy(counts.sum() / (len(counts) * counts)).float()
    if len(config.class_weights) != len(counts):
        raise ConfigError(f"train.class_weights has {counted(len(config.class_weights), 'number')} "
                          f"for {len(counts)} classes",
                          "nothing was started", "give one number for each class, in the order of the classes")
    return torch.tensor(config.class_weights)


def lane_loss(config: TrainConfig, weights_K: Tensor | None) -> LaneLoss:
    """Cross-entropy: the weighted sum over a lane divided by its samples, so that lanes weigh the same."""

    def loss(logits_NK: Tensor, labels_N: Tensor) -> Tensor:
        total = F.cross_entropy(logits_NK, labels_N, weights_K, reduction="sum",
                                label_smoothing=config.label_smoothing)
        return total / labels_N.numel()

    return loss


def build_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """SGD with momentum or AdamW, fused; no weight decay for biases and normalisation."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=True)
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, fused=True)


def build_outer_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum for the mean of what lanes moved in a round."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    return torch.optim.SGD(trainable, lr=config.outer_lr, momentum=config.outer_momentum,
                           nesterov=config.outer_momentum > 0, fused=True)


def learning_rate(config: TrainConfig, step: int, total_steps: int, steps_an_epoch: float) -> float:
    """Rate of step ``step`` (from 0): linear warm-up, then a half cosine to zero or constant."""
    warmup = min(round(config.warmup_epochs * steps_an_epoch), total_steps - 1)
    if step < warmup:
        return config.lr * (step + 1) / (warmup + 1)
    if config.schedule == "constant":
        return config.lr
    # Loshchilov and Hutter, "SGDR", 2017, without restarts.
    return config.lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (total_steps - warmup)))


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's state, named PARAMETER/STATE."""
    tensors: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        for state, value in optimizer.state.get(parameter, {}).items():
            if value is not None:
                tensors[f"{name}/{state}"] = value if isinstance(value, Tensor) else torch.tensor(value)
    return tensors


def load_optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Inverse of `optimizer_tensors`, in each parameter's own memory format. Raises CheckpointError."""
    parameters = dict(model.named_parameters())
    for name, value in tensors.items():
        owner, _, state = name.rpartition("/")
        if owner not in parameters:
            raise CheckpointError(f"the optimiser's state names {owner!r}, which the model does not have",
                                  "the run can not go on", "use the code that the run was begun with")
        parameter = parameters[owner]
        own = torch.empty_like(parameter) if value.shape == parameter.shape else torch.empty_like(value)
        optimizer.state[parameter][state] = own.copy_(value)


class MovingAverage:
    """Exponential moving average of a model's weights and statistics (Polyak and Juditsky, 1992).

    The decay starts lower, at (1 + t) / (10 + t) after t steps, so that the random start is forgotten.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._decay = decay
        self._live = dict(model.state_dict())
        self.tensors = {name: tensor.detach().clone() for name, tensor in self._live.items()}

    def update(self, steps: int, since: int = 1) -> None:
        """Take in the weights after ``steps`` steps, ``since`` steps after the last time."""
        decay = min(self._decay, (1 + steps) / (10 + steps)) ** since
        for name, average in self.tensors.items():
            if average.is_floating_point():
                average.lerp_(self._live[name].detach(), 1 - decay)
            else:
                average.copy_(self._live[name])

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over saved averages."""
        for name, average in self.tensors.items():
            average.copy_(tensors[name])
