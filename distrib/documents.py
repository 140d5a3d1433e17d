"""YAML documents against a typed, frozen schema: one clear error per mistake, nearest known key included."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from distrib.errors import ConfigError

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]

_MAX_BYTES = 1 << 20

KINDS: dict[str, tuple[str, frozenset[str]]] = {
    "experiment": ("`distrib train`", frozenset({
        "data", "model", "train", "evaluate", "comm", "checkpoint", "watch", "guard"})),
    "study": ("`distrib tune`", frozenset({
        "experiment", "keys", "trials", "at_once", "sampler", "startup", "pruning", "folder", "storage"})),
    "cluster file": ("`launch run` or `launch submit`", frozenset({
        "launcher", "hosts", "nodes", "node", "ranks_per_node", "ranks_per_numa_node", "threads_per_rank", "comm_cores",
        "hyper_threads", "interface", "allocator", "env", "start_s", "grace_s", "stop_grace_s", "elastic", "restarts",
        "restart_wait_s", "mpirun", "slurm"})),
}
"""Documents: who takes them, and the keys that no other has."""


class Section(BaseModel):
    """A frozen piece of a document; unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False,
                              use_attribute_docstrings=True)


class _Loader(yaml.SafeLoader):
    """SafeLoader with YAML 1.2 floats (``1e-3`` is a number), no aliases and no repeated keys."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()  # type: ignore[no-untyped-call]
            raise yaml.MarkedYAMLError(None, None, "aliases (*name) are not accepted", event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(None, None, "a key is no plain word", key.start_mark)
            if key.value in seen:
                raise yaml.MarkedYAMLError(None, None, f"the key {key.value!r} stands twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, LookupError, AttributeError, TypeError) as error:  # such as a date of month 13
            raise yaml.MarkedYAMLError(None, None, f"{node.value!r:.60} is no {node.tag.rpartition(':')[2]}",
                                       node.start_mark) from error


class _Dumper(yaml.SafeDumper):
    """SafeDumper that quotes texts which `_Loader` would take for numbers."""


for _kind in (_Loader, _Dumper):
    _kind.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"^[-+]?(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)([eE][-+]?\d+)$"),
        list("-+0123456789."),
    )

_Document = TypeVar("_Document", bound=Section)


def parse_yaml(text: str, where: str) -> Any:
    """Parse one YAML document. ``where`` names it in the ConfigError."""
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506  # a SafeLoader: builds plain values only
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        at = f" line {mark.line + 1} column {mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise ConfigError(f"{where}{at} is not valid YAML: {problem}", "nothing was started",
                          "correct that line") from error
    except RecursionError as error:
        raise ConfigError(f"{where} is nested too deeply", "nothing was started", "flatten it") from error


def to_yaml(document: dict[str, Any]) -> bytes:
    """A document as `read_yaml` reads it back."""
    text: str = yaml.dump(document, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
    return text.encode()


def read_yaml(path: Path, kind: str) -> dict[str, Any]:
    """Read a YAML mapping from a file; an empty file is an empty mapping. Raises ConfigError."""
    try:
        with path.open("rb") as file:
            raw = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"the {kind} {path} can not be read: {error.strerror}", "nothing was started",
                          "check the path") from error
    if len(raw) > _MAX_BYTES:
        raise ConfigError(f"the {kind} {path} is larger than 1 MiB", "nothing was started", "check the path")
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        raise ConfigError(f"the {kind} {path} is not UTF-8 text (byte {error.start})", "nothing was started",
                          "check that it is the YAML file you mean") from error
    document = parse_yaml(text, f"the {kind} {path}")
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise ConfigError(f"the {kind} {path} holds a {type(document).__name__}, not keys with values",
                          "nothing was started", "write `key: value` lines")
    _refuse_other_kind(document, path, kind)
    return document


def _refuse_other_kind(document: dict[str, Any], path: Path, kind: str) -> None:
    """Raises ConfigError for a document that has more keys of another kind than of this one."""
    known = {name: len(keys & document.keys()) for name, (_, keys) in KINDS.items()}
    nearest = max(known, key=lambda name: known[name])
    if known[nearest] > known.get(kind, 0):
        this, that = (f"{'an' if name == 'experiment' else 'a'} {name}" for name in (kind, nearest))
        raise ConfigError(f"{path} looks like {that}, and {this} is wanted here", "nothing was started",
                          f"give it to {KINDS[nearest][0]}, or name another file")


def apply_overrides(document: dict[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """A copy of ``document`` with ``a.b=value`` overrides applied; values are read as YAML."""
    result: dict[str, Any] = _copy(document)
    for override in overrides:
        name, equals, value = override.partition("=")
        if not equals or not all(name.strip().split(".")):
            raise ConfigError(f"--set {override!r} is not of the form section.key=value", "nothing was started",
                              "write for example --set train.lr=0.1")
        _put(result, name.strip(), parse_yaml(value, f"the value of --set {name.strip()}"), f"--set {override!r}")
    return result


def with_values(document: dict[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of ``document`` with these values at these dotted keys. Raises ConfigError."""
    result: dict[str, Any] = _copy(document)
    for name, value in values.items():
        _put(result, name, value, name)
    return result


def _put(document: dict[str, Any], name: str, value: Any, where: str) -> None:
    place = document
    *sections, last = name.split(".")
    for key in sections:
        if place.get(key) is None:  # absent, or an empty section
            place[key] = {}
        inner = place[key]
        if not isinstance(inner, dict):
            raise ConfigError(f"{where}: {key!r} is a value, not a section", "nothing was started", "check the key")
        place = inner
    place[last] = value


def _copy(value: Any) -> Any:
    return {key: _copy(inner) for key, inner in value.items()} if isinstance(value, dict) else value


def validate(schema: type[_Document], document: Any, where: str) -> _Document:
    """Build ``schema`` from plain values. Raises ConfigError naming every mistake in one line."""
    try:
        return schema.model_validate(document)
    except ValidationError as error:
        mistakes = [_mistake(schema, detail) for detail in error.errors(include_url=False)[:5]]
        more = error.error_count() - len(mistakes)
        text = "; ".join(mistakes) + (f"; and {more} more" if more > 0 else "")
        raise ConfigError(f"{where}: {text}", "nothing was started", "correct it") from error


def _mistake(schema: type[Section], detail: Any) -> str:
    location: Sequence[Any] = detail["loc"]
    name = ".".join(str(part) for part in location) or "the document"
    if detail["type"] == "extra_forbidden":
        near = difflib.get_close_matches(str(location[-1]), _keys(schema, location[:-1]), n=1, cutoff=0.5)
        return f"unknown key {name!r}" + (f" (did you mean {near[0]!r}?)" if near else "")
    if detail["type"] == "missing":
        return f"{name!r} is missing"
    message = str(detail["msg"]).removeprefix("Value error, ")
    if detail["type"] == "model_type":
        message = f"it is a section, with keys of its own: {', '.join(_keys(schema, location))}"
    given = repr(detail["input"])
    given = given if len(given) <= 60 else given[:57] + "..."
    return f"{name} = {given}: {message[:1].lower()}{message[1:]}"


def _keys(schema: type[BaseModel], location: Sequence[Any]) -> list[str]:
    """The keys known at a location of the schema, for suggestions."""
    parts = iter(location)
    for part in parts:
        field = schema.model_fields.get(str(part))
        # An optional section is a union of the section and None; one of free names is a dict of sections.
        inner: tuple[Any, ...] = (field.annotation, *get_args(field.annotation)) if field else ()
        sections = [kind for kind in inner if isinstance(kind, type) and issubclass(kind, BaseModel)]
        if not sections:
            return []
        schema = sections[0]
        if field is not None and get_origin(field.annotation) is dict:
            next(parts, None)
    return list(schema.model_fields)
