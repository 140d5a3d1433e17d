"""What the samples' JSON members say beside image and label: age, site, device."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from distrib.data.foreign import scan_shard
from distrib.data.manifest import Shard, SplitSamples
from distrib.durable import sha256_file
from distrib.errors import DataError, ShardError

_EMPTY = ("", "nan", "none", "null", "na")
_SHOWN = 20
_MAX_JSON = 1 << 20


def read_fields(folder: Path, samples: SplitSamples, names: Sequence[str]) -> dict[str, list[str | None]]:
    """The values of each named field, one a sample in split order; None where it is empty or not given.

    A name is a column that `distrib prepare --keep-column` kept, else a field of the JSON itself. Shards are
    compared with their digests first, as labels are. Raises ShardError, and DataError for a field that no sample has.
    """
    values: dict[str, list[str | None]] = {name: [] for name in names}
    have: dict[str, None] = {}
    for shard in samples.shards:
        for record in _records(folder, shard) if names else ():
            have.update(dict.fromkeys(record))
            for name in names:
                values[name].append(_text(record.get(name)))
    for name, column in values.items():
        if name not in have:
            some = ", ".join(list(have)[:_SHOWN]) or "none"
            raise DataError(f"no sample of the {samples.split} split has a field {name!r} (they have {some})",
                            "there are no subgroups by it",
                            "name one of these, or prepare the dataset again with --keep-column")
        if not any(value is not None for value in column):
            raise DataError(f"the field {name!r} is empty in all samples of the {samples.split} split",
                            "there are no subgroups by it", "name another")
    return values


def _records(folder: Path, shard: Shard) -> list[dict[str, Any]]:
    """The fields of every sample of a shard, in the order of its index."""
    path = folder / shard.name
    try:
        if sha256_file(path) != shard.sha256:
            raise ShardError(f"shard {path} does not match its digest", "its fields can not be trusted",
                             f"see what else is wrong with `distrib inspect {folder}`, then restore it")
        members = {sample.image[0]: sample.members.get("json") for sample in scan_shard(path)
                   if any(kind in sample.members for kind in ("jpg", "jpeg", "png"))}
        with path.open("rb") as file:
            return [_record(file.fileno(), members.get(offset)) for offset in shard.index.offset]
    except OSError as error:
        raise ShardError(f"shard {path} can not be read: {error.strerror}", "its fields are missing",
                         "check the file system") from error
    except ValueError as error:
        raise ShardError(f"shard {path} has a sample that {error}", "its fields can not be read",
                         "write the shard anew") from error


def _record(fd: int, place: tuple[int, int] | None) -> dict[str, Any]:
    """One JSON member with its kept columns beside its other fields; empty where there is none. Raises ValueError."""
    if place is None:
        return {}
    offset, length = place
    if length > _MAX_JSON:
        raise ValueError(f"has a .json member of {length} bytes")
    try:
        record = json.loads(os.pread(fd, length, offset))
    except (ValueError, RecursionError):
        raise ValueError("has a .json member that is not JSON") from None
    if not isinstance(record, dict):
        raise ValueError(f"has a .json member that is a {type(record).__name__}, not fields with values")
    kept = record.pop("columns", None)
    return record | kept if isinstance(kept, dict) else record


def _text(value: Any) -> str | None:
    if isinstance(value, bool):
        return "true" if value else "false"
    if not isinstance(value, str | int | float):
        return None
    text = str(value).strip()
    return None if text.lower() in _EMPTY else text
