"""Writes docs/experiment.md from the schema: python docs/experiment_reference.py > docs/experiment.md"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from distrib.config import Experiment


def reference() -> str:
    """Every key of an experiment with its values, default and meaning."""
    schema = Experiment.model_json_schema()
    lines = ["# The keys of an experiment", "",
             "Override any of them with `--set section.key=value`. Unknown keys are refused. Written from the schema "
             "by `python docs/experiment_reference.py`.", "",
             "| key | values | default | meaning |", "|---|---|---|---|"]
    return "\n".join([*lines, *_rows(schema, schema["$defs"], ""), ""])


def _rows(section: dict[str, Any], definitions: dict[str, Any], prefix: str) -> Iterator[str]:
    for name, entry in section["properties"].items():
        inner = _section(entry, definitions)
        if inner is not None:
            yield from _rows(inner, definitions, f"{prefix}{name}.")
            continue
        required = name in section.get("required", ())
        default = "required" if required else f"`{json.dumps(entry['default'])}`"
        meaning = " ".join(entry.get("description", "").split())
        yield f"| `{prefix}{name}` | {_values(entry)} | {default} | {meaning} |"


def _section(entry: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any] | None:
    for one in (entry, *entry.get("anyOf", ())):
        if "$ref" in one:
            found: dict[str, Any] = definitions[one["$ref"].rpartition("/")[2]]
            return found
    return None


def _values(entry: dict[str, Any]) -> str:
    if "anyOf" in entry:
        return " or ".join(_values(one) for one in entry["anyOf"])
    if "enum" in entry:
        return ", ".join(map(str, entry["enum"]))
    if "const" in entry:
        return str(entry["const"])
    kind = {"integer": "whole number", "number": "number", "string": "text", "boolean": "true, false", "null": "null",
            "array": "list"}[entry["type"]]
    words = {"minimum": "from", "exclusiveMinimum": "above", "maximum": "to", "exclusiveMaximum": "below"}
    bounds = [f"{word} {entry[key]}" for key, word in words.items() if key in entry]
    return " ".join([kind, *bounds])


if __name__ == "__main__":
    print(reference(), end="")
