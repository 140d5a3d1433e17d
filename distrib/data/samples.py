"""What a dataset is made of before it is read: image files, with label, group and split."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from distrib.data.manifest import Split

_UNSAFE = re.compile(r"[^A-Za-z0-9_-]")
_MAX_KEY = 80  # with the extension it fits the 100 bytes of a plain tar header


@dataclass(frozen=True)
class Sample:
    path: str
    """Relative to the source folder, with forward slashes; undecodable bytes as surrogates."""
    label: str
    group: str | None = None
    split: Split | None = None
    kept: tuple[tuple[str, str], ...] = ()
    """Further columns of its row, by name, that go with it into the dataset."""


@dataclass
class Listing:
    """The samples found, in order of their paths, and what else there is to say about the source."""

    samples: list[Sample]
    classes: tuple[str, ...]
    given_splits: bool = False
    """Whether the source itself says which split a sample belongs to."""
    missing: list[tuple[str, str]] = field(default_factory=list)
    """(name, reason) of images that the labels list and that can not be read as files."""
    notes: list[str] = field(default_factory=list)
    """Sentences for the user."""


def readable(path: str) -> str:
    """A path that any JSON or terminal can hold."""
    return path.encode(errors="surrogateescape").decode(errors="replace")


def natural_order(text: str) -> tuple[tuple[int, int, str], ...]:
    """Sort key: runs of digits compare as numbers, so that class 10 follows class 9."""
    parts = re.split(r"([0-9]+)", text)
    return (*((0, int(part), part) if number % 2 else (1, 0, part) for number, part in enumerate(parts) if part),
            (2, 0, text))


def sorted_classes(labels: Iterable[str]) -> tuple[str, ...]:
    """The distinct labels, numbers by value and before words, digits within words by value."""

    def order(label: str) -> tuple[int, float, tuple[tuple[int, int, str], ...]]:
        try:
            value = float(label)
        except ValueError:
            return 1, 0.0, natural_order(label)
        return (0, value, natural_order(label)) if value == value else (1, 0.0, natural_order(label))

    return tuple(sorted(set(labels), key=order))


def sample_keys(paths: Sequence[str]) -> list[str]:
    """A unique, readable, safe name for every path, whatever else is in the list and in whatever order.

    The path without its extension, with anything but letters, digits, ``_`` and ``-`` as ``_`` (WebDataset
    ends a key at the first dot). Where two would be equal or one too long, a piece of the path's digest follows.
    """
    plain = [_plain_key(path) for path in paths]
    # Tools for other file systems do not tell upper from lower case.
    times = Counter(key.lower() for key in plain)
    return [key if times[key.lower()] == 1 and len(key) <= _MAX_KEY
            else f"{key[13 - _MAX_KEY:].lstrip('_/-')}-{_digest(path)}"
            for key, path in zip(plain, paths, strict=True)]


def _plain_key(path: str) -> str:
    folder, slash, name = path.rpartition("/")
    stem = name.rpartition(".")[0] or name
    text = unicodedata.normalize("NFKD", f"{folder}{slash}{stem}")
    text = "".join(c for c in text if not unicodedata.combining(c))
    # WebDataset skips names in double underscores; a leading dash looks like an option.
    parts = (_UNSAFE.sub("_", part).strip("_").lstrip("-") or "x" for part in text.split("/"))
    return "/".join(parts)


def _digest(path: str) -> str:
    return hashlib.sha256(path.encode(errors="surrogateescape")).hexdigest()[:12]
