"""The pace that an experiment asks for, put together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from distrib.comm.group import Group
from distrib.config import Experiment
from distrib.data.stream import Stream
from distrib.models.normalise import Normalise
from distrib.train.build import data_parallel
from distrib.train.each_step import EachStep
from distrib.train.lane import LanePass
from distrib.train.local_round import LocalRounds
from distrib.train.loop import total_steps
from distrib.train.optimise import build_optimizer, lane_loss, learning_rate
from distrib.train.outer_sum import OuterSum
from distrib.train.pace import Pace, Witness
from distrib.train.reduction import Reduction
from distrib.train.reductions import build_words
from distrib.train.step import LaneStep


def build_pace(experiment: Experiment, num_samples: int, weights_K: Tensor | None, group: Group, model: nn.Module,
               optimizer: torch.optim.Optimizer, reduction: Reduction | None, stream: Stream,
               witness: Witness | None, lanes: Sequence[int]) -> Pace:
    """Collective. ``reduction`` is needed for lanes that meet at every step, and ``optimizer`` then is theirs.

    ``weights_K``: the classes' weights in the loss; None: all alike. ``lanes`` are those that this rank carries.
    With local steps ``optimizer`` is the outer one, and ``stream`` must deliver a lane's step at a time.
    """
    train = experiment.train
    steps = total_steps(experiment, num_samples)
    forward: dict[str, Any] = {
        "loss": lane_loss(train, weights_K), "prepare": Normalise(experiment.data.mean, experiment.data.std),
        "autocast": train.precision == "bf16", "seed": experiment.seed,
    }

    def rate(step: int) -> float:
        return learning_rate(train, step, steps, num_samples / train.global_batch)

    if reduction is not None:
        ddp = data_parallel(model, compiled=train.compile)
        reduction.attach(ddp)
        return EachStep(model, optimizer, reduction, LaneStep(model, ddp, reduction, **forward), stream, rate=rate,
                        clip_norm=train.clip_norm, witness=witness)
    module: Any = torch.compile(model) if train.compile else model
    sizes = [p.numel() for p in model.parameters() if p.requires_grad]
    return LocalRounds(
        model, optimizer, group, OuterSum(group, sizes, train.lanes, build_words(train)),
        LanePass(module, **forward), stream, lanes=lanes,
        num_lanes=train.lanes, local_steps=train.local_steps, total_steps=steps, seed=experiment.seed,
        inner=lambda: build_optimizer(model, train), rate=rate, clip_norm=train.clip_norm, witness=witness,
    )
