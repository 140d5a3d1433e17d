"""What may vary in a study: axes over keys of an experiment, which of them a trial has, and its experiment. Pure."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
from collections.abc import Iterator, Mapping
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, model_validator

from distrib.config import Experiment
from distrib.documents import Section, validate, with_values
from distrib.errors import ConfigError

Values = Mapping[str, Any]
"""Keys of an experiment, dotted, and what a trial gives them."""

MOST_CORNERS = 2000
"""Of a space with more corners, only those are looked at that differ from the base in one key."""


def _number(value: object) -> object:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("is no number")
    return value


def _plain(values: list[Any]) -> list[Any]:
    try:
        texts = [json.dumps(value, sort_keys=True, allow_nan=False) for value in values]
    except (TypeError, ValueError):
        raise ValueError("choices are texts, numbers, true, false, null, or lists and sections of them") from None
    if len(set(texts)) < len(texts):
        raise ValueError("a choice stands twice")
    return values


Number = Annotated[int | float, BeforeValidator(_number)]


class Axis(Section):
    """How one key varies: within a range, or among choices."""

    low: Number | None = None
    """Least value; with `high`, which is a value too."""
    high: Number | None = None
    log: bool = False
    """Draw the logarithm evenly."""
    step: Number | None = None
    """Draw only low, low + step, ..., high."""
    choices: Annotated[list[Any], Field(min_length=1, max_length=1000), AfterValidator(_plain)] | None = None
    """The values, in place of a range."""
    when: dict[str, Any] = Field(default_factory=dict)
    """Other keys of the study with the choice, or list of choices, for which this key varies; else it stays as it is
    in the base experiment."""

    @model_validator(mode="after")
    def _together(self) -> Axis:
        ranged = (self.low, self.high, self.step) != (None, None, None) or self.log
        if ranged == (self.choices is not None):
            raise ValueError("give either low and high, or choices")
        if self.choices is not None:
            return self
        if self.low is None or self.high is None:
            raise ValueError("a range needs both low and high")
        if not self.low < self.high:
            raise ValueError(f"low ({self.low}) must be less than high ({self.high})")
        if self.log and self.low <= 0:
            raise ValueError(f"with log, low ({self.low}) must be above 0")
        if self.step is not None:
            if self.log:
                raise ValueError("log and step exclude each other")
            if self.step <= 0 or not _is_whole((self.high - self.low) / self.step):
                raise ValueError(f"high ({self.high}) must be low ({self.low}) and a number of steps ({self.step})")
        return self

    @property
    def ends(self) -> list[Any]:
        """Its choices, or both ends of its range."""
        return self.choices if self.choices is not None else [self.low, self.high]

    def holds(self, value: Any) -> bool:
        """Whether a value is in the range."""
        if isinstance(value, bool) or not isinstance(value, int | float) or self.low is None or self.high is None:
            return False
        return self.low <= value <= self.high and (self.step is None or _is_whole((value - self.low) / self.step))

    @property
    def labels(self) -> dict[str, Any]:
        """Each choice by the text that stands for it in the storage."""
        return {json.dumps(choice, sort_keys=True): choice for choice in self.choices or ()}


def _is_whole(number: float) -> bool:
    return math.isclose(number, round(number), rel_tol=1e-9, abs_tol=1e-9)


Axes = Mapping[str, Axis]


def in_order(axes: Axes) -> list[str]:
    """The keys, each after those that it depends on. Raises ValueError."""
    done: list[str] = []
    for name, axis in axes.items():
        for parent, wanted in axis.when.items():
            if parent not in axes:
                raise ValueError(f"{name}: when names {parent!r}, which the study does not vary")
            known = axes[parent].labels
            if not known:
                raise ValueError(f"{name}: when names {parent!r}, which has a range; it must have choices")
            for value in _listed(wanted):
                if json.dumps(value, sort_keys=True, default=str) not in known:
                    raise ValueError(f"{name}: {value!r} is no choice of {parent!r}")
    while len(done) < len(axes):
        ready = [name for name, axis in axes.items() if name not in done and all(key in done for key in axis.when)]
        if not ready:
            raise ValueError(f"{min(axes.keys() - set(done))}: when leads back to itself")
        done += ready
    return done


def is_active(axis: Axis, values: Values) -> bool:
    """Whether a key varies, given those it depends on."""
    return all(parent in values and _text(values[parent]) in [_text(value) for value in _listed(wanted)]
               for parent, wanted in axis.when.items())


def _listed(wanted: Any) -> list[Any]:
    return wanted if isinstance(wanted, list) else [wanted]


def _text(value: Any) -> str:
    """0 and false are equal in Python, and not here."""
    return json.dumps(value, sort_keys=True)


def base_values(axes: Axes, document: dict[str, Any]) -> dict[str, Any]:
    """What the base experiment gives to those keys that vary around it; a value outside its axis is left out."""
    base = validate(Experiment, document, "the base experiment")
    dump = base.model_dump(mode="json")
    values: dict[str, Any] = {}
    for name in in_order(axes):
        axis = axes[name]
        if not is_active(axis, values):
            continue
        if axis.choices is None:
            inner: Any = dump
            for part in name.split("."):
                inner = inner.get(part) if isinstance(inner, dict) else None
            if axis.holds(inner):
                values[name] = inner
        else:
            for choice in axis.choices:
                with contextlib.suppress(ConfigError):  # of a choice that does not go with the base
                    if validate(Experiment, with_values(document, {name: choice}), name) == base:
                        values[name] = choice
                        break
    return values


def corners(axes: Axes) -> Iterator[dict[str, Any]]:
    """All combinations of choices and of the ends of ranges; of many axes, each of these by itself."""
    names = in_order(axes)
    if math.prod(len(axes[name].ends) for name in names) <= MOST_CORNERS:
        seen = set()
        for ends in itertools.product(*(axes[name].ends for name in names)):
            values: dict[str, Any] = {}
            for name, end in zip(names, ends, strict=True):
                if is_active(axes[name], values):
                    values[name] = end
            if (text := _text(values)) not in seen:
                seen.add(text)
                yield values
        return
    for name in names:
        for end in axes[name].ends:
            yield {**_parents(axes, name), name: end}


def _parents(axes: Axes, name: str) -> dict[str, Any]:
    """Choices with which a key varies."""
    values: dict[str, Any] = {}
    for parent, wanted in axes[name].when.items():
        values |= {**_parents(axes, parent), parent: _listed(wanted)[0]}
    return values


def number_type(name: str) -> type[int] | type[float] | None:
    """The numbers that a key of an experiment takes; None for other keys, or if there is no such key."""
    schema: type[BaseModel] | None = Experiment
    types: list[type] = []
    for part in name.split("."):
        field = schema.model_fields.get(part) if schema is not None else None
        if field is None:
            return None
        types = list(_types(field.annotation))
        schema = next((kind for kind in types if issubclass(kind, BaseModel)), None)
    return float if float in types else int if int in types else None


def _types(annotation: Any) -> Iterator[type]:
    if get_origin(annotation) is Annotated:
        yield from _types(get_args(annotation)[0])
    elif isinstance(annotation, UnionType) or get_origin(annotation) is Union:
        for inner in get_args(annotation):
            yield from _types(inner)
    elif isinstance(annotation, type) and get_origin(annotation) is None:
        yield annotation
