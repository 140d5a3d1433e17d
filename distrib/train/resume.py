"""Going on with a run: which experiment it is, and bringing all ranks to the checkpoint's state."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distrib.comm.group import Group
from distrib.config import Experiment, load_experiment, load_run_experiment
from distrib.documents import apply_overrides, validate
from distrib.errors import ConfigError
from distrib.rundir import RunDir
from distrib.train.precision import resolve_precision

# Keys that do not change the model, so that a run may go on with other values.
_FREE = ("data.dataset", "data.decode_threads", "data.prefetch_steps", "comm.", "checkpoint.", "train.ledger",
         "evaluate.bootstrap", "model.weights")


def settle_experiment(run: RunDir, path: Path | None, overrides: Sequence[str]) -> Experiment:
    """The resolved experiment to run: the file's, or the run's own when it goes on.

    Raises ConfigError if both exist and differ in a key that changes the model.
    """
    if not run.experiment.exists():
        if path is None:
            raise ConfigError(f"{run.root} is no run to go on with", "there is nothing to train",
                              "give EXPERIMENT.yaml to begin one there")
        return _resolved(load_experiment(path, overrides))
    begun = load_run_experiment(run)
    if path is not None:
        wanted = load_experiment(path, overrides)
    else:
        wanted = validate(Experiment, apply_overrides(begun.model_dump(mode="json"), overrides), str(run.experiment))
    if wanted.train.precision == "auto":  # whatever it meant where the run was begun
        wanted = _with_precision(wanted, begun.train.precision)
    differences = [name for name in _differences(begun.model_dump(mode="json"), wanted.model_dump(mode="json"))
                   if not name.startswith(_FREE)]
    if differences:
        raise ConfigError(f"{run.root} was begun with another {', '.join(differences)}", "the run was not continued",
                          "give another --run folder, or the run's own values")
    return wanted


def broadcast_tensors(group: Group, tensors: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
    """Rank 0's named tensors, on every rank; the others pass None. Collective."""
    header = None
    if tensors is not None:
        header = json.dumps([(name, str(t.dtype).removeprefix("torch."), list(t.shape))
                             for name, t in tensors.items()]).encode()
    names = json.loads(group.broadcast_bytes(header))
    if tensors is None:
        tensors = {name: torch.empty(shape, dtype=getattr(torch, dtype)) for name, dtype, shape in names}
    result = {name: tensor.contiguous() for name, tensor in tensors.items()}
    group.broadcast(result.values())
    return result


def _resolved(experiment: Experiment) -> Experiment:
    return _with_precision(experiment, resolve_precision(experiment.train.precision))


def _with_precision(experiment: Experiment, precision: str) -> Experiment:
    return experiment.model_copy(update={"train": experiment.train.model_copy(update={"precision": precision})})


def _differences(first: Mapping[str, Any], second: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key in sorted(first.keys() | second.keys()):
        one, other = first.get(key), second.get(key)
        if isinstance(one, dict) and isinstance(other, dict):
            yield from _differences(one, other, f"{prefix}{key}.")
        elif one != other:
            yield f"{prefix}{key}"
