"""What training changes: how it begins, comes from a checkpoint or another rank, and goes back to a copy."""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from distrib.checkpoint import newest_checkpoint
from distrib.comm.group import Group
from distrib.config import Experiment
from distrib.errors import CheckpointError
from distrib.rundir import RunDir
from distrib.train import ipex
from distrib.train.build import starting_model
from distrib.train.guard import Snapshot
from distrib.train.loop import Best, Progress
from distrib.train.optimise import (
    MovingAverage,
    build_optimizer,
    build_outer_optimizer,
    load_optimizer_tensors,
    optimizer_tensors,
)
from distrib.train.resume import broadcast_tensors
from distrib.train.start import take_start

Tell = Callable[[str], None]


@dataclass
class State:
    """What training changes, and a checkpoint holds."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    """With local steps, the outer one."""
    average: MovingAverage | None
    exponents: dict[str, Any] = field(default_factory=dict)
    """The reduction's state; empty before the first step, and with local steps, where a round carries none."""
    progress: Progress = field(default_factory=Progress)

    def tensors(self) -> dict[str, Tensor]:
        """All that training changes, by name."""
        parts = {"model": self.model.state_dict(), "optimizer": optimizer_tensors(self.model, self.optimizer),
                 "ema": self.average.tensors if self.average is not None else {}}
        return {f"{part}:{name}": tensor for part, tensors in parts.items() for name, tensor in tensors.items()}

    def put(self, kept: Snapshot) -> None:
        """Back to a copy."""
        parts: dict[str, dict[str, Tensor]] = {"model": {}, "optimizer": {}, "ema": {}}
        for name, tensor in kept.tensors.items():
            part, _, own = name.partition(":")
            parts[part][own] = tensor
        self.model.load_state_dict(parts["model"])
        self.optimizer.state.clear()
        load_optimizer_tensors(self.model, self.optimizer, parts["optimizer"])
        if self.average is not None:
            self.average.load(parts["ema"])
        self.exponents, self.progress = copy.deepcopy(kept.exponents), copy.deepcopy(kept.progress)

    def header(self) -> bytes:
        """What a rank that is levelled must know besides the tensors, as JSON."""
        progress = vars(self.progress) | {"best": vars(self.progress.best)}
        return json.dumps({"exponents": self.exponents, "progress": progress}).encode()


def fresh_state(run: RunDir, experiment: Experiment, classes: Sequence[str], group: Group, tell: Tell) -> State:
    """Collective. The state before the first step; rank 0 alone reads the weights of a warm start."""
    train, start = experiment.train, experiment.model.start
    take = None
    if start is not None and group.world.is_first:
        take = functools.partial(take_start, run=run, start=start, classes=classes, tell=tell)
    model = starting_model(experiment, len(classes), tell, take)
    optimizer = build_outer_optimizer(model, train) if train.local_steps > 1 else build_optimizer(model, train)
    if train.ipex:  # before anything keeps a tensor of the model's: parameters get new storage
        ipex.optimize(model, optimizer, group)
    # Ranks on different processors may have drawn different last bits.
    group.broadcast(model.state_dict().values())
    average = MovingAverage(model, train.ema_decay) if train.ema_decay is not None else None
    return State(model, optimizer, average)


def restore(state: State, run: RunDir, group: Group, tell: Tell) -> None:
    """Bring every rank to the newest whole checkpoint, which rank 0 alone reads. Collective."""
    found = newest_checkpoint(run, tell) if group.world.is_first else None
    header = json.dumps([found.step, found.progress] if found else None).encode() if group.world.is_first else None
    received = json.loads(group.broadcast_bytes(header))
    if received is None:
        return
    step, saved = received
    _take(state, group, 0, *((found.model, found.optimizer, found.ema) if found else (None, None, None)))
    state.exponents = saved["reduction"]
    state.progress = Progress(step, best=Best(**saved["best"]))
    tell(f"goes on from the checkpoint of step {step}")


def level(state: State, group: Group, source: int) -> None:
    """Bring every rank to the state of rank ``source``. Collective."""
    header = state.header() if group.rank == source else None
    received = json.loads(group.broadcast_bytes(header, source))
    tensors: tuple[Mapping[str, Tensor] | None, ...] = (None, None, None)
    if header is not None:
        average = state.average.tensors if state.average is not None else None
        tensors = (state.model.state_dict(), optimizer_tensors(state.model, state.optimizer), average)
    _take(state, group, source, *tensors)
    progress = received["progress"]
    state.exponents = received["exponents"]
    state.progress = Progress(**progress | {"best": Best(**progress["best"])})


def _take(state: State, group: Group, source: int, model: Mapping[str, Tensor] | None,
          optimizer: Mapping[str, Tensor] | None, average: Mapping[str, Tensor] | None) -> None:
    """Collective: the tensors that rank ``source`` gives, into the state of every rank.

    All have come before the first is taken: a rank that is interrupted holds no mixture of two steps.
    """
    weights, moments = broadcast_tensors(group, model, source), broadcast_tensors(group, optimizer, source)
    averages = broadcast_tensors(group, average, source) if state.average is not None else None
    try:
        state.model.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(f"the checkpoint does not fit the model: {str(error).splitlines()[-1].strip()}",
                              "the run was not continued", "use the code that the run was begun with") from error
    load_optimizer_tensors(state.model, state.optimizer, moments)
    if state.average is not None and averages is not None:
        state.average.load(averages)
