"""Named tensors of a model: digests, starting weights, frozen parts."""

from __future__ import annotations

import fnmatch
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from distrib.errors import ConfigError


def weights_sha256(state: Mapping[str, Tensor]) -> str:
    """SHA-256 over every name and its tensor's bytes (row-major), in order of name."""
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(name.encode() + b"\0")
        content: Any = state[name].detach().contiguous().reshape(-1).view(torch.uint8).numpy()
        digest.update(content)
    return digest.hexdigest()


_REMEDY = "choose weights of the same model, as safetensors"


@dataclass(frozen=True)
class StartingWeights:
    """What `load_starting_weights` did."""

    loaded: int
    replaced: tuple[str, ...]
    """Tensors of the head that kept their fresh values, in whole or in some rows, as their classes differ."""


def load_starting_weights(model: nn.Module, path: Path) -> StartingWeights:
    """Load a safetensors file into a model by name; a head of another size keeps its fresh values.

    Raises ConfigError if the file can not be read, or differs in anything but the head.
    """
    try:
        loaded = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"model.weights = {str(path)!r} can not be read: {error}", "nothing was started",
                          _REMEDY) from error
    return take_weights(model, loaded, f"model.weights = {str(path)!r}")


def take_weights(model: nn.Module, loaded: dict[str, Tensor], what: str,
                 rows: Sequence[int | None] | None = None) -> StartingWeights:
    """Take tensors into a model by name. Raises ConfigError, with ``what`` they are, if they differ but for the head.

    ``rows``: for each class the row of the head to take, None to keep the fresh one; without it a head of another
    size keeps its fresh values as a whole.
    """
    own = model.state_dict()
    head = _head_names(model)
    missing = sorted(name for name in own if name not in loaded and not name.endswith("num_batches_tracked"))
    unknown = sorted(name for name in loaded if name not in own)
    reshaped = [n for n in loaded if n in own and loaded[n].shape != own[n].shape]
    wrong = [name for name in reshaped if name not in head]
    replaced = tuple(sorted({name for name in (*reshaped, *missing) if name in head}))
    missing = [name for name in missing if name not in head]
    for names, fault in ((missing, "lacks"), (unknown, "has the unknown"), (wrong, "has another shape of")):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise ConfigError(f"{what} {fault} {', '.join(names[:3])}{more}", "it is not of this model", _REMEDY)
    if rows is not None:
        known = sorted(head & loaded.keys())
        model.load_state_dict(loaded | {name: _with_rows(own[name], loaded[name], rows) for name in known},
                              strict=False)
        return StartingWeights(len(loaded), tuple(known) if None in rows else ())
    model.load_state_dict({k: v for k, v in loaded.items() if k not in replaced}, strict=False)
    return StartingWeights(len(loaded) - len([n for n in replaced if n in loaded]), replaced)


def _with_rows(fresh: Tensor, loaded: Tensor, rows: Sequence[int | None]) -> Tensor:
    """The fresh tensor with the rows that are to be taken."""
    if loaded.shape[1:] != fresh.shape[1:] or len(rows) != len(fresh):
        raise ConfigError(f"the head's tensor has the shape {list(loaded.shape)}, where {list(fresh.shape)} is wanted",
                          "its rows can not be taken over", _REMEDY)
    result = fresh.clone()
    for row, taken in enumerate(rows):
        if taken is not None:
            result[row] = loaded[taken]
    return result


def freeze(model: nn.Module, patterns: Sequence[str]) -> int:
    """Stop training of the parameters whose names match; returns how many. Raises ConfigError.

    Normalisation layers whose parameters are all frozen keep their statistics too; see `set_training`.
    """
    frozen = 0
    names = [name for name, _ in model.named_parameters()]
    for pattern in patterns:
        matching = set(fnmatch.filter(names, pattern))
        if not matching:
            raise ConfigError(f"model.freeze: {pattern!r} matches no parameter", "nothing was started",
                              f"name parameters such as {', '.join(names[:3])}")
        for name, parameter in model.named_parameters():
            if name in matching and parameter.requires_grad:
                parameter.requires_grad_(False)
                frozen += 1
    if frozen == len(names):
        raise ConfigError("model.freeze matches every parameter", "there is nothing left to train", "freeze less")
    return frozen


def set_training(model: nn.Module) -> None:
    """Training mode, but for layers that are wholly frozen."""
    model.train()
    for module in model.modules():
        if is_frozen(module):
            module.eval()


def is_frozen(module: nn.Module) -> bool:
    """Whether a layer has parameters of its own and none of them trains."""
    own = list(module.parameters(recurse=False))
    return bool(own) and not any(parameter.requires_grad for parameter in own)


def _head_names(model: nn.Module) -> set[str]:
    """Parameters of the last layer, the one whose outputs are classes."""
    last = ""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d) and next(module.parameters(recurse=False), None) is not None:
            last = name
    return {f"{last}.weight", f"{last}.bias"} if last else set()
