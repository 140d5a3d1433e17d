"""What a torch.export archive may hold before torch is allowed to load it.

`torch.export.load` (read in torch 2.13) can run code from the file in four ways: it unpickles sample
inputs, constants and tensors marked so (weights_only is only tried first, then dropped); it hands symbolic
sizes to sympy, which evaluates them; it compiles ``guards_code``; and it looks operators up by name anywhere
below `torch`. Our exports need none of it: they are written without sample inputs, guards and names of
source files. So an archive is accepted only if it holds plain tensors and a graph of aten operators.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from distrib.errors import BundleError

# Records below the archive's root folder.
_RECORD = re.compile(
    r"data/(weights/(weight_\d+|model_weights_config\.json)|constants/(tensor_\d+|model_constants_config\.json)"
    r"|sample_inputs/model\.pt)|models/model\.json|archive_format|archive_version|byteorder"
    r"|\.data/(version|serialization_id)"
)
_WORD = re.compile(r"[A-Za-z0-9_.+-]*")
_OPERATOR = re.compile(r"torch\.ops\.aten\.\w+\.\w+"
                       r"|_operator\.(add|sub|mul|floordiv|mod|neg|getitem|eq|ne|lt|le|gt|ge)")
_FILE_OPERATORS = ("from_file",)
_SIZE = re.compile(r"(Symbol\('[a-z]+\d+'(, (positive|integer)=True)*\)|\d+|[ ()*+-])+")
_TREE_TYPES = {None, "builtins.tuple", "builtins.list", "builtins.dict"}


def check_archive(path: Path) -> None:
    """Raises BundleError unless loading the archive can do nothing but build a graph."""
    try:
        with zipfile.ZipFile(path) as archive:
            _check_records(archive)
            root = archive.namelist()[0].partition("/")[0]
            for kind in ("weights", "constants"):
                config = json.loads(archive.read(f"{root}/data/{kind}/model_{kind}_config.json"))
                if any(entry["use_pickle"] for entry in config["config"].values()):
                    raise ValueError(f"it has pickled {kind}")
            _check_model(json.loads(archive.read(f"{root}/models/model.json")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, zipfile.BadZipFile) as error:
        raise BundleError(f"{path} is not an archive that `distrib export` writes: {error}",
                          "it was not loaded, since it could run code", "export the bundle again, or choose another "
                          "--runtime") from error


def _check_records(archive: zipfile.ZipFile) -> None:
    for info in archive.infolist():
        record = info.filename.partition("/")[2]
        if not _RECORD.fullmatch(record):
            raise ValueError(f"it has the record {info.filename!r}")
        if record == "data/sample_inputs/model.pt" and info.file_size:
            raise ValueError("it has pickled sample inputs")
    if len(set(archive.namelist())) != len(archive.namelist()):
        raise ValueError("it has a record twice")


def _check_model(model: Any) -> None:
    if model.get("guards_code"):
        raise ValueError("it has guards to compile")
    for key, text in _strings(model):
        if key == "target":
            allowed = bool(_OPERATOR.fullmatch(text)) and not any(name in text for name in _FILE_OPERATORS)
        elif key == "expr_str":
            allowed = bool(_SIZE.fullmatch(text))
        elif key in ("in_spec", "out_spec"):
            allowed = all(kind in _TREE_TYPES for kind in _tree_types(json.loads(text)))
        else:
            allowed = bool(_WORD.fullmatch(text))
        if not allowed:
            raise ValueError(f"its {key} is {text[:80]!r}")


def _strings(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """(nearest key, text) of every string in a JSON value; keys themselves too."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, list):
        for inner in value:
            yield from _strings(inner, key)
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield "key", name
            yield from _strings(inner, name)


def _tree_types(value: Any) -> Iterator[str | None]:
    if isinstance(value, list):
        for inner in value:
            yield from _tree_types(inner)
    elif isinstance(value, dict):
        yield value["type"]
        yield from _tree_types(value["children_spec"])
