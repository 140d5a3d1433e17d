"""`distrib`, but with a bit of the model's memory that flips when SIGUSR2 arrives: a fault that nothing else shows.

    python -m tests.rig.flip train ...
"""

from __future__ import annotations

import signal
import sys
from typing import Any

import torch

from distrib.cli import main
from distrib.train import paces

_models: list[torch.nn.Module] = []


def _flip(*_: object) -> None:
    with torch.no_grad():
        weight = next(_models[-1].parameters())
        weight[(0,) * weight.dim()].view(torch.int32).bitwise_xor_(1 << 12)


def _noted(model: torch.nn.Module, **options: Any) -> Any:
    _models.append(model)
    return data_parallel(model, **options)


if __name__ == "__main__":
    data_parallel = vars(paces)["data_parallel"]
    vars(paces)["data_parallel"] = _noted
    signal.signal(signal.SIGUSR2, _flip)
    sys.exit(main())
