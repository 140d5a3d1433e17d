"""Reading WebDataset shards that others made: which samples they hold, and where. Nothing is decoded here."""

from __future__ import annotations

import json
import os
import re
import tarfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distrib.errors import ShardError

_IMAGES = ("jpg", "jpeg", "png")
# WebDataset's rule: a key ends at the first dot after the last slash, and samples stand together.
_MEMBER = re.compile(r"((?:.*/|)[^./]+)\.([^/]*)")
_META = re.compile(r"__[^/]*__($|/)")
_BLOCK = 512
_MAX_TEXT = 1 << 20


@dataclass
class ForeignSample:
    """A key of a shard, and its members by extension in lower case: (offset, length)."""

    shard: str
    key: str
    members: dict[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def image(self) -> tuple[int, int]:
        """(offset, length) of the one image. Raises ValueError with the reason as the end of a sentence."""
        found = [self.members[extension] for extension in _IMAGES if extension in self.members]
        if len(found) != 1:
            have = ", ".join(sorted(self.members))
            raise ValueError(f"has {len(found)} members named .jpg, .jpeg or .png (it has {have})")
        if found[0][1] == 0:
            raise ValueError("is empty (0 bytes)")
        return found[0]


def scan_shard(path: Path) -> list[ForeignSample]:
    """The samples of a tar, in their order. Raises ShardError if it is cut off, damaged or compressed."""
    remedy = "fetch it again, or move it away"
    samples: list[ForeignSample] = []
    seen: set[str] = set()
    try:
        with path.open("rb") as file:
            start = file.read(_BLOCK)
            if start.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")):
                raise ShardError(f"shard {path} is compressed", "single images can not be read out of it",
                                 f"unpack it, for example with `gunzip {path.name}`")
            file.seek(0)
            with tarfile.open(fileobj=file, mode="r:") as tar:
                for member in tar:
                    match = _MEMBER.fullmatch(member.name)
                    if not member.isreg() or member.issparse() or not match or _META.match(member.name):
                        continue
                    key, extension = match[1].removeprefix("./"), match[2].lower()
                    if not samples or samples[-1].key != key:
                        if key in seen:
                            raise ShardError(f"shard {path} has the key {key!r} in two places (byte {member.offset})",
                                             "its samples can not be told apart", "write the shard anew")
                        seen.add(key)
                        samples.append(ForeignSample(path.name, key))
                    if extension in samples[-1].members:
                        raise ShardError(f"shard {path} has {member.name!r} twice (byte {member.offset})",
                                         "nobody knows which one counts", "write the shard anew")
                    samples[-1].members[extension] = (member.offset_data, member.size)
                end = tar.offset
            file.seek(end)
            mark = file.read(_BLOCK)
    except tarfile.TarError as error:
        raise ShardError(f"shard {path} is cut off or damaged at byte {_position(path, samples)}: {error}",
                         "samples are missing", remedy) from error
    except OSError as error:
        raise ShardError(f"shard {path} can not be read: {error.strerror or error}", "its samples are missing",
                         "check the file") from error
    if not mark:
        raise ShardError(f"shard {path} ends at byte {end} without its end mark: it is cut off",
                         "samples may be missing", remedy)
    if mark.strip(b"\0"):
        raise ShardError(f"shard {path} has no valid tar header at byte {end}", "samples may be missing", remedy)
    return samples


def _position(path: Path, samples: list[ForeignSample]) -> int:
    """How far a damaged tar was understood: the end of the last member, or of the file if that is before."""
    ends = [offset + length for offset, length in samples[-1].members.values()] if samples else [0]
    return min(max(ends), os.stat(path).st_size)


@dataclass(frozen=True)
class LabelRule:
    """Where label and group of a sample stand."""

    label_field: str | None = None
    """Field of the .json member; None: the .cls member."""
    group_field: str | None = None
    """Field of the .json member; None: no groups."""


def read_label(fd: int, sample: ForeignSample, rule: LabelRule) -> tuple[str, str | None]:
    """(label, group) as text. Raises ValueError with the reason as the end of a sentence, and OSError."""
    record: dict[str, Any] = {}
    if rule.label_field or rule.group_field:
        try:
            record = json.loads(_text(fd, sample, "json"))
        except (json.JSONDecodeError, RecursionError):
            raise ValueError("has a .json member that is not JSON") from None
        if not isinstance(record, dict):
            raise ValueError(f"has a .json member that is a {type(record).__name__}, not fields with values")
    label = _value(record, rule.label_field) if rule.label_field else _text(fd, sample, "cls").strip()
    if not label:
        raise ValueError("has an empty label")
    return label, _value(record, rule.group_field) if rule.group_field else None


def _value(record: dict[str, Any], name: str) -> str:
    if name not in record:
        raise ValueError(f"has no field {name!r} in its .json (it has {', '.join(map(str, list(record)[:20]))})")
    value = record[name]
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"has a {type(value).__name__} in field {name!r}, not a text or number")
    return str(value).strip()


def _text(fd: int, sample: ForeignSample, extension: str) -> str:
    if extension not in sample.members:
        have = ", ".join(f".{name}" for name in sorted(sample.members))
        raise ValueError(f"has no .{extension} member (it has {have})")
    offset, length = sample.members[extension]
    if length > _MAX_TEXT:
        raise ValueError(f"has a .{extension} member of {length} bytes")
    try:
        return os.pread(fd, length, offset).decode()
    except UnicodeDecodeError:
        raise ValueError(f"has a .{extension} member that is not UTF-8 text (binary labels are not read)") from None
