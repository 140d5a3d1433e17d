"""Writes the references of keys from their schemas:

    python docs/key_reference.py experiment > docs/experiment.md
    python docs/key_reference.py cluster > docs/cluster-file.md
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any

from distrib.config import Experiment
from distrib.documents import Section
from launch.cluster import Cluster

KINDS: dict[str, tuple[type[Section], str, str]] = {
    "experiment": (Experiment, "an experiment", "section.key=value"),
    "cluster": (Cluster, "a cluster file", "key=value"),
}


EMPTY: dict[str | None, Any] = {"array": [], "object": {}}


def reference(kind: str) -> str:
    """Every key of an experiment or a cluster file with its values, default and meaning."""
    document, name, override = KINDS[kind]
    schema = document.model_json_schema()
    lines = [f"# The keys of {name}", "",
             f"Override any of them with `--set {override}`. Unknown keys are refused. Written from the schema "
             "by `python docs/key_reference.py`.", "",
             "| key | values | default | meaning |", "|---|---|---|---|"]
    return "\n".join([*lines, *_rows(schema, schema["$defs"], ""), ""])


def _rows(section: dict[str, Any], definitions: dict[str, Any], prefix: str) -> Iterator[str]:
    for name, entry in section["properties"].items():
        inner = _section(entry, definitions)
        if inner is not None:
            yield from _rows(inner, definitions, f"{prefix}{name}.")
            continue
        required = name in section.get("required", ())
        default = "required" if required else f"`{json.dumps(entry.get('default', EMPTY.get(entry.get('type'))))}`"
        meaning = " ".join(entry.get("description", "").split())
        yield f"| `{prefix}{name}` | {_values(entry)} | {default} | {meaning} |"
        listed = _section(entry.get("items", {}), definitions)
        if listed is not None:
            yield from _rows(listed, definitions, f"{prefix}{name}[].")


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
            "array": "list", "object": "section"}[entry["type"]]
    words = {"minimum": "from", "exclusiveMinimum": "above", "maximum": "to", "exclusiveMaximum": "below"}
    bounds = [f"{word} {entry[key]}" for key, word in words.items() if key in entry]
    return " ".join([kind, *bounds])


if __name__ == "__main__":
    print(reference(sys.argv[1]), end="")
