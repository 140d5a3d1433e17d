"""Names of hosts, and the short way to write many of them: ``node[01-16]``. Pure."""

from __future__ import annotations

import itertools
import re

from distrib.errors import printable

MAX_HOSTS = 65536
NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")
"""Host names and IPv4 addresses. What it refuses could be an option or a shell's word to ssh and mpirun."""


def expand(text: str) -> list[str]:
    """``node[1-3,07]b`` as node1b node2b node3b node07b. Raises ValueError for what is no name of a host."""
    choices: list[list[str]] = []
    for part in re.split(r"(\[[^\[\]]*\])", text):
        choices.append([part] if not part.startswith("[") else [number for piece in part[1:-1].split(",")
                                                                for number in _range(piece, text)])
        total = 1
        for choice in choices:
            total *= len(choice)
        if total > MAX_HOSTS:
            raise ValueError(f"{printable(text)!r} means more than {MAX_HOSTS} hosts")
    names = ["".join(parts) for parts in itertools.product(*choices)]
    for name in names:
        if not NAME.fullmatch(name) or len(name) > 253:
            raise ValueError(f"{printable(name)!r} is no name of a host (letters, digits, dots, hyphens, underscores)")
    return names


def _range(piece: str, text: str) -> list[str]:
    found = re.fullmatch(r"(\d{1,9})(?:-(\d{1,9}))?", piece)
    if not found:
        raise ValueError(f"{printable(text)!r} is no list of hosts; write for example node[1-4,7]")
    first, last = found[1], found[2] or found[1]
    if int(last) < int(first):
        raise ValueError(f"{printable(text)!r} runs backwards; write the smaller number of hosts first")
    if int(last) - int(first) >= MAX_HOSTS:
        raise ValueError(f"{printable(text)!r} means more than {MAX_HOSTS} hosts")
    return [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]
