"""Before the first step: all ranks were given the same, or the model of all would be spoilt by one of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch

from distrib.comm.group import Group
from distrib.config import Experiment
from distrib.errors import ConfigError, WorldError
from distrib.train.environment import DECISIVE
from distrib.train.processor import resolve_precision
from distrib.train.settle import FREE, Settled, differences, with_precision

_LINE_BYTES = 512
# What every node may have its own value of: where things lie, and how they are read.
_LOCAL = ("data.dataset", "data.decode_threads", "data.prefetch_steps", "model.weights", "model.start.source")


class NotLetInError(WorldError):
    """A rank that wants to join was given another experiment or dataset; the others go on without it."""


def agree_on_experiment(settled: Settled, group: Group, newcomers: Collection[int] = ()) -> Experiment:
    """Collective: the experiment that all ranks train, its precision resolved for rank 0's processor.

    ``newcomers`` are ranks that join the others: they take rank 0's values of what does not change the model. Raises
    ConfigError, on every rank, naming the first one that was given another experiment or dataset; if that is a
    newcomer, only there, and NotLetInError on the others.
    """
    wish = settled.experiment.train.precision
    experiment = with_precision(settled.experiment, resolve_precision(wish))
    theirs = _of_rank_0(group, {**experiment.model_dump(mode="json"), "dataset_sha256": settled.manifest.sha256})
    if wish == "auto":
        experiment = with_precision(experiment, theirs["train"]["precision"])
    mine = {**experiment.model_dump(mode="json"), "dataset_sha256": settled.manifest.sha256}
    named = [name for name in differences(theirs, mine)
             if not name.startswith(FREE if group.rank in newcomers else _LOCAL)]
    odd = _first_odd_one(group, ", ".join(named))
    if odd is not None:
        if newcomers and not named:
            raise NotLetInError(f"{odd} than rank 0", "it was not let in, and the others go on")
        raise ConfigError(f"{odd} than rank 0", "one model can not be trained from two experiments",
                          "give every node the same experiment, dataset and overrides")
    return _with_free_keys_of(theirs, experiment) if group.rank in newcomers else experiment


def _with_free_keys_of(theirs: Mapping[str, Any], experiment: Experiment) -> Experiment:
    document = experiment.model_dump(mode="json")
    for name in differences(theirs, document):
        if name != "dataset_sha256" and not name.startswith(_LOCAL):
            *sections, key = name.split(".")
            mine, given = document, theirs
            for section in sections:
                mine, given = mine[section], given[section]
            mine[key] = given[key]
    return Experiment.model_validate(document)


def warn_of_other_processors(environment: Mapping[str, Any], group: Group, tell: Callable[[str], None]) -> None:
    """Collective: one line if a rank's processor, libraries or threads would compute other last bits than rank 0's."""
    theirs = _of_rank_0(group, environment)
    named = [name for name in DECISIVE if theirs[name] != environment[name]]
    odd = _first_odd_one(group, ", ".join(f"{name} ({environment[name]})" for name in named))
    if odd is not None:
        tell(f"warning: {odd} than rank 0: the last bits of the model depend on which rank carries which lane")


def _of_rank_0(group: Group, document: Mapping[str, Any]) -> dict[str, Any]:
    content = group.broadcast_bytes(json.dumps(document).encode() if group.world.is_first else None)
    received: dict[str, Any] = json.loads(content)
    return received


def _first_odd_one(group: Group, what: str) -> str | None:
    """"rank 3 on HOST has another WHAT" of the lowest rank that has something to say; the same on all ranks."""
    return first_word(group, f"rank {group.rank} on {group.world.host} has another {what}" if what else "")


def first_word(group: Group, text: str) -> str | None:
    """Collective: the text of the lowest rank whose text is not empty, on all ranks; None if all are."""
    lowest = torch.tensor([-(group.rank if text else group.size)])
    group.all_reduce(lowest, "max")
    if -int(lowest) == group.size:
        return None
    line = torch.zeros(_LINE_BYTES, dtype=torch.int32)
    if -int(lowest) == group.rank:
        content = text.encode()[:_LINE_BYTES]
        line[:len(content)] = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    group.all_reduce(line)
    return line.to(torch.uint8).numpy().tobytes().rstrip(b"\0").decode(errors="ignore")
