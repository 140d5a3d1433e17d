"""What lanes' optimisers remember from round to round, where they may: the mean over lanes of their moments.

Second moments travel as their roots, whose range is that of gradients: squares would lose twice the bits.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from distrib.config import TrainConfig
from distrib.train.fixed_point import memory_order

_PREFIX = "inner_"
_ROOTS = "exp_avg_sq"


class InnerMemory:
    """Moments common to all lanes, kept in the outer optimiser's state so that checkpoints hold them.

    ``moments`` are the names in the inner optimiser's state, none for an optimiser that begins each round anew.
    """

    def __init__(self, parameters: Sequence[torch.nn.Parameter], outer: torch.optim.Optimizer,
                 moments: Sequence[str]) -> None:
        self._parameters, self._outer, self._moments = parameters, outer, moments

    @property
    def sizes(self) -> list[int]:
        """Elements of each tensor that `of_lane` gives."""
        return [p.numel() for _ in self._moments for p in self._parameters]

    def give(self, inner: torch.optim.Optimizer, step: int) -> None:
        """A lane's new optimiser begins with the common moments, as after ``step`` steps."""
        if step == 0:
            return
        for parameter in self._parameters if self._moments else ():
            common = self._outer.state[parameter]
            own = inner.state[parameter] = {name: common[_PREFIX + name].clone() for name in self._moments}
            if _ROOTS in own:
                own["step"] = torch.tensor(float(step))

    def of_lane(self, inner: torch.optim.Optimizer) -> list[Tensor]:
        """A lane's moments at its round's end: float32, 1-d contiguous, copies."""
        values = []
        for name in self._moments:
            for parameter in self._parameters:
                value = inner.state[parameter].get(name)
                if value is None:  # the model does not use this parameter
                    value = torch.zeros_like(parameter)
                values.append(memory_order(value.detach().sqrt() if name == _ROOTS else value.detach().clone()))
        return values

    def take(self, number: int, mean: Tensor, unit: float) -> None:
        """The mean over lanes of a tensor of `of_lane`, by its number; ``unit`` is the grid that it was summed on."""
        moment, place = divmod(number, len(self._parameters))
        name, parameter = self._moments[moment], self._parameters[place]
        if name == _ROOTS:
            # What the grid does not resolve must not count as never seen: the next step there would be too long.
            mean = mean.clamp_(min=unit).square_()
        common = torch.empty_like(parameter, requires_grad=False)
        memory_order(common).copy_(mean)
        self._outer.state[parameter][_PREFIX + name] = common


def moment_names(train: TrainConfig) -> list[str]:
    """The inner optimiser's moments that lanes share, as ``train.local_memory`` says."""
    if train.local_memory == "none":
        return []
    if train.optimizer == "adamw":
        return ["exp_avg", _ROOTS]
    return ["momentum_buffer"] if train.momentum > 0 else []
