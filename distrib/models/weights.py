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


@dataclass(frozen=True)
class StartingWeights:
    """What `load_starting_weights` did."""

    loaded: int
    replaced: tuple[str, ...]
    """Tensors of the head that kept their fresh values, as their shape differs."""


def load_starting_weights(model: nn.Module, path: Path) -> StartingWeights:
    """Load a safetensors file into a model by name; a head of another size keeps its fresh values.

    Raises ConfigError if the file can not be read, or differs in anything but the head.
    """
    remedy = "choose weights of the same model, as safetensors"
    try:
        loaded = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"model.weights = {str(path)!r} can not be read: {error}", "nothing was started",
                          remedy) from error
    own = model.state_dict()
    head = _head_names(model)
    missing = sorted(name for name in own if name not in loaded and not name.endswith("num_batches_tracked"))
    unknown = sorted(name for name in loaded if name not in own)
    reshaped = [n for n in loaded if n in own and loaded[n].shape != own[n].shape]
    wrong = [name for name in reshaped if name not in head]
    replaced = tuple(sorted({name for name in (*reshaped, *missing) if name in head}))
    missing = [name for name in missing if name not in head]
    for names, what in ((missing, "lacks"), (unknown, "has the unknown"), (wrong, "has another shape of")):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise ConfigError(f"model.weights = {str(path)!r} {what} {', '.join(names[:3])}{more}",
                              "it is not of this model", remedy)
    model.load_state_dict({k: v for k, v in loaded.items() if k not in replaced}, strict=False)
    return StartingWeights(len(loaded) - len([n for n in replaced if n in loaded]), replaced)


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
