"""Which malloc the ranks use: a shared library found where the loader would find it, preloaded by LD_PRELOAD."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from distrib.errors import MissingPartError

LIBRARIES = {
    "tcmalloc": (("libtcmalloc_minimal.so.4", "libtcmalloc.so.4"), "apt-get install libtcmalloc-minimal4"),
    "jemalloc": (("libjemalloc.so.2",), "apt-get install libjemalloc2"),
}
"""Allocator -> (names of its library, best first; how to install it)."""


@dataclass(frozen=True)
class Allocator:
    """The allocator of the ranks."""

    name: str
    """tcmalloc, jemalloc or system."""
    library: Path | None
    """What to preload; None for nothing."""
    remark: str
    """For the log: what was chosen and why."""


def choose_allocator(wish: str, environment: Mapping[str, str], root: Path = Path("/")) -> Allocator:
    """Find the library for ``wish`` (auto, tcmalloc, jemalloc, system) on this machine.

    Raises MissingPartError if one was asked for by name and is not there.
    """
    if wish == "system":
        return Allocator("system", None, "the system's")
    preloaded = re.split(r"[ :]+", environment.get("LD_PRELOAD", ""))
    for name in LIBRARIES:
        if wish in ("auto", name) and any(Path(path).name.startswith(f"lib{name}") for path in preloaded):
            return Allocator(name, None, f"{name}, which LD_PRELOAD names already")
    for name, (libraries, remedy) in LIBRARIES.items():
        if wish == name or (wish == "auto" and name == "tcmalloc"):
            library = find_library(libraries, environment, root)
            if library:
                return Allocator(name, library, f"{name} ({library})")
            if wish == name:
                raise MissingPartError(f"allocator: {name} is wished, but {' or '.join(libraries)} is not installed",
                                       "nothing was started", f"run {remedy}, or write allocator: auto")
    remedy = LIBRARIES["tcmalloc"][1]
    return Allocator("system", None, f"the system's, as no tcmalloc is installed (faster: {remedy})")


def find_library(names: tuple[str, ...], environment: Mapping[str, str], root: Path = Path("/")) -> Path | None:
    """The first of ``names`` among the folders that the dynamic loader knows, built for this processor."""
    prefix = Path(sys.prefix).resolve() / "lib"  # a conda environment brings its own
    folders = [Path(folder) for folder in environment.get("LD_LIBRARY_PATH", "").split(":") if folder.startswith("/")]
    cache = _read(root / "etc/ld.so.cache", 1 << 24)
    for name in names:
        entry = rb"\0(/[ -9;-~]*/" + re.escape(name.encode()) + rb")(?=\0)"
        cached = [Path(path.decode()) for path in re.findall(entry, cache)]
        # The usual folders by pattern; a loader configured otherwise has them in its cache.
        usual = sorted(root.glob(f"usr/lib/*-linux-*/{name}")) + [
            root / folder / name for folder in ("usr/local/lib", "usr/lib64", "usr/lib", "lib64", "lib")]
        for path in (prefix / name, *(folder / name for folder in folders), *cached, *usual):
            # LD_PRELOAD separates its entries by colons and spaces and can not quote them.
            if not re.search(r"[\s:]", str(path)) and _for_this_processor(path):
                return path
    return None


def _for_this_processor(library: Path) -> bool:
    """Whether it is an ELF file of the class, byte order and processor of this Python."""
    def kind(path: Path) -> bytes:
        header = _read(path, 20)
        return header[:6] + header[18:20] if header.startswith(b"\x7fELF") else b""

    return kind(library) != b"" and kind(library) == kind(Path(sys.executable))


def _read(path: Path, limit: int) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(limit)
    except OSError:
        return b""
