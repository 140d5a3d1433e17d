"""Names of hosts, and the short way to write many of them: ``node[01-16]``. Pure."""

from __future__ import annotations

import itertools
import math
import re
from dataclasses import dataclass

from distrib.errors import printable

MAX_HOSTS = 65536
MAX_NAME = 253
NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")
"""Host names and IPv4 addresses. What it refuses could be an option or a shell's word to ssh and mpirun."""


@dataclass(frozen=True)
class _Span:
    """Numbers from ``first`` to ``last``, with zeros before to ``width`` digits."""

    first: int
    last: int
    width: int

    def __len__(self) -> int:
        return self.last - self.first + 1

    def texts(self) -> list[str]:
        return [str(number).zfill(self.width) for number in range(self.first, self.last + 1)]


def expand(text: str) -> list[str]:
    """``node[1-3,07]b`` as node1b node2b node3b node07b. Raises ValueError for what is no name of a host."""
    count(text)  # before anything of that length is built
    choices = [[part] if isinstance(part, str) else [number for span in part for number in span.texts()]
               for part in _parse(text)]
    names = ["".join(parts) for parts in itertools.product(*choices)]
    for name in names:
        if not NAME.fullmatch(name) or len(name) > MAX_NAME:
            raise ValueError(f"{printable(name)!r} is no name of a host (letters, digits, dots, hyphens, underscores)")
    return names


def count(text: str) -> int:
    """How many hosts a text means. Raises ValueError for more than MAX_HOSTS, and for what is no list of hosts."""
    parts = _parse(text)
    if sum(len(part) for part in parts if isinstance(part, str)) > MAX_NAME:
        raise ValueError(f"{printable(text[:60])!r}... is too long for a name of a host")
    total = math.prod(sum(map(len, part)) for part in parts if not isinstance(part, str))
    if total > MAX_HOSTS:
        raise ValueError(f"{printable(text[:60])!r} means more than {MAX_HOSTS} hosts")
    return total


def _parse(text: str) -> list[str | list[_Span]]:
    """The fixed parts, and between them what stands in brackets."""
    return [[_span(piece, text) for piece in part[1:-1].split(",")] if part.startswith("[") else part
            for part in re.split(r"(\[[^\[\]]*\])", text)]


def _span(piece: str, text: str) -> _Span:
    found = re.fullmatch(r"(\d{1,9})(?:-(\d{1,9}))?", piece)
    if not found:
        raise ValueError(f"{printable(text[:60])!r} is no list of hosts; write for example node[1-4,7]")
    first, last = int(found[1]), int(found[2] or found[1])
    if last < first:
        raise ValueError(f"{printable(text[:60])!r} runs backwards; write the smaller number of hosts first")
    return _Span(first, last, len(found[1]))
