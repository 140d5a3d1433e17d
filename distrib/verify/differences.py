"""What two runs were given that decides the bits of a model, and since which step it differs. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypedDict

from distrib.train.environment import DECISIVE
from distrib.train.settle import FREE, differences
from distrib.verify.record import Record

# No step depends on these, though they may decide when a run ends. The file of model.weights does matter to a new run.
_NO_BITS = (*(name for name in FREE if name != "model.weights"), "evaluate.", "train.early_stopping")
_ENVIRONMENT = ("distrib", *DECISIVE)


class Difference(TypedDict):
    """One thing that two runs were given different values of."""

    what: str
    a: Any
    b: Any
    from_step: int
    """The first step that was done with these values."""


def recorded_differences(a: Record, b: Record, last_step: int) -> list[Difference]:
    """Everything that the records of two runs differ in and that decides bits, up to a step that both have."""
    return [*_of_experiments(a, b), *_of_datasets(a, b), *_of_environments(a, b, last_step)]


def history(starts: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The starts whose steps still count: a run that went on from an earlier step did the later ones again."""
    kept: list[Mapping[str, Any]] = []
    for start in starts:
        while kept and kept[-1]["step"] >= start["step"]:
            kept.pop()
        kept.append(start)
    return kept


def environment_at(starts: Sequence[Mapping[str, Any]], step: int) -> Mapping[str, Any] | None:
    """What a step was done with; None if no record tells."""
    return next((start for start in reversed(history(starts)) if start["step"] < step), None)


def sums_are_fast(a: Record, b: Record) -> bool:
    """Whether bits depend on the ranks, too."""
    return any(record.experiment["train"]["reduction"] == "fast" for record in (a, b))


def _of_experiments(a: Record, b: Record) -> Iterator[Difference]:
    free = tuple(name for name in _NO_BITS if name != "comm.") if sums_are_fast(a, b) else _NO_BITS
    free = (*free, "comm.timeout_s")
    for name in differences(a.experiment, b.experiment):
        if not name.startswith(free):
            yield Difference(what=name, a=_value(a.experiment, name), b=_value(b.experiment, name), from_step=1)


def _of_datasets(a: Record, b: Record) -> Iterator[Difference]:
    if a.dataset_sha256 != b.dataset_sha256:
        yield Difference(what="dataset_sha256", a=a.dataset_sha256, b=b.dataset_sha256, from_step=1)


def _of_environments(a: Record, b: Record, last_step: int) -> Iterator[Difference]:
    names = (*_ENVIRONMENT, "world_size", "step") if sums_are_fast(a, b) else _ENVIRONMENT
    begins = {start["step"] + 1 for record in (a, b) for start in history(record.starts)}
    told: list[tuple[str, Any, Any]] = []
    for step in sorted(begin for begin in begins if begin <= last_step):
        mine, theirs = environment_at(a.starts, step), environment_at(b.starts, step)
        if mine is None or theirs is None:
            continue
        for name in differences({one: mine.get(one) for one in names}, {one: theirs.get(one) for one in names}):
            found = (name, _value(mine, name), _value(theirs, name))
            if found not in told:
                told.append(found)
                what = "started_after_step" if name == "step" else name
                yield Difference(what=what, a=found[1], b=found[2], from_step=step)


def _value(document: Mapping[str, Any], name: str) -> Any:
    """The value of a dotted name; None if there is none."""
    value: Any = document
    for key in name.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value
