"""Going on with a run: bringing all ranks to the checkpoint's state."""

from __future__ import annotations

import json
from collections.abc import Mapping

import torch
from torch import Tensor

from distrib.comm.group import Group


def broadcast_tensors(group: Group, tensors: Mapping[str, Tensor] | None, source: int = 0) -> dict[str, Tensor]:
    """Rank ``source``'s named tensors, on every rank; the others pass None. Collective."""
    header = None
    if tensors is not None:
        header = json.dumps([(name, str(t.dtype).removeprefix("torch."), list(t.shape))
                             for name, t in tensors.items()]).encode()
    names = json.loads(group.broadcast_bytes(header, source))
    if tensors is None:
        tensors = {name: torch.empty(shape, dtype=getattr(torch, dtype)) for name, dtype, shape in names}
    result = {name: tensor.contiguous() for name, tensor in tensors.items()}
    group.broadcast(result.values(), source)
    return result
