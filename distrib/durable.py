"""Files that are whole or absent: atomic writes, sealed JSON documents, digests.

A *sealed* document is a JSON object whose first two members are ``format`` and ``sha256``. The
digest is that of the file's own bytes with the 64 hexadecimal digits replaced by zeros, so that any
flipped byte is found without a second file and without re-encoding the JSON.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

_ZEROS = b"0" * 64
_SEAL = re.compile(rb'\A\{\s*"format":\s*"([^"\\]{1,64})",\s*"sha256":\s*"([0-9a-f]{64})"')


class SealError(ValueError):
    """A sealed document is damaged; the message says how. Callers name the file and the remedy."""


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, as 64 hexadecimal digits. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fsync_dir(path: Path) -> None:
    """Make the names in a directory durable (after a rename into it)."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_durable(path: Path, content: bytes) -> None:
    """Write a file and fsync it, not atomically: for files inside a folder still to be published."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def copy_durable(source: Path, target: Path) -> None:
    """Copy a file to a name that must be free, and fsync it: for files inside a folder still to be published."""
    with source.open("rb") as reading, target.open("xb") as writing:
        shutil.copyfileobj(reading, writing, 1 << 22)
        writing.flush()
        os.fsync(writing.fileno())


def replace_file(path: Path, content: bytes) -> None:
    """Atomically create or replace a file: temporary sibling, fsync, rename. Raises OSError.

    Anything but a file is refused: a rename over /dev/null would take it away from the whole machine.
    """
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write_durable(temporary, content)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    fsync_dir(path.parent)


def begin_staging(out: Path, tell: Callable[[str], None]) -> Path:
    """A new empty folder beside ``out``, for `publish_dir`. Those that killed processes on this host left there are
    removed, which is told. Raises OSError."""
    out = out.absolute()
    out.parent.mkdir(parents=True, exist_ok=True)
    host = re.sub(r"[^A-Za-z0-9-]", "_", socket.gethostname()) or "localhost"
    pattern = re.compile(rf"\.{re.escape(out.name)}\.([A-Za-z0-9_-]+)\.(\d+)\.partial")
    for entry in out.parent.iterdir():
        match = pattern.fullmatch(entry.name)
        if match and match[1] == host and not Path(f"/proc/{match[2]}").exists():
            tell(f"removing {entry}, which a run that was killed left behind")
            shutil.rmtree(entry, ignore_errors=True)
        elif match:
            tell(f"note: {entry} belongs to another run, which may be alive on host {match[1]}")
    staging = out.parent / f".{out.name}.{host}.{os.getpid()}.partial"
    staging.mkdir()
    return staging


def publish_dir(staging: Path, final: Path) -> None:
    """Atomically give a finished staging folder its final name. Raises OSError, also if that is a folder of files."""
    fsync_dir(staging)
    os.rename(staging, final)
    fsync_dir(final.parent)


def remove_tree(path: Path) -> None:
    """Remove a folder so that a kill in between leaves nothing under its name that looks whole."""
    doomed = path.with_name(f".{path.name}.{os.getpid()}.removed")
    shutil.rmtree(doomed, ignore_errors=True)  # of a killed process that had our id: in containers ids repeat
    os.rename(path, doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def seal(format_name: str, body: Mapping[str, Any], *, indent: int | None = None) -> bytes:
    """Encode ``body`` as a sealed JSON document of the given format. Deterministic for equal input."""
    document = {"format": format_name, "sha256": _ZEROS.decode(), **body}
    raw = json.dumps(document, ensure_ascii=False, allow_nan=False, indent=indent).encode() + b"\n"
    return raw.replace(_ZEROS, hashlib.sha256(raw).hexdigest().encode(), 1)


def seal_digest(raw: bytes) -> str:
    """The digest a sealed document carries: its identity. Raises SealError if it has none."""
    match = _SEAL.match(raw)
    if not match:
        raise SealError("it does not begin with a format name and a digest")
    return match[2].decode()


def open_sealed(raw: bytes, format_name: str) -> dict[str, Any]:
    """Check the seal and the format, and return the document. Raises SealError."""
    match = _SEAL.match(raw)
    if not match:
        raise SealError("it does not begin with a format name and a digest")
    if match[1].decode(errors="replace") != format_name:
        raise SealError(f"its format is {match[1].decode(errors='replace')!r}, expected {format_name!r}")
    start, end = match.span(2)
    if hashlib.sha256(raw[:start] + _ZEROS + raw[end:]).hexdigest().encode() != match[2]:
        raise SealError("its bytes do not match its own digest: it was damaged or edited")
    try:
        document = json.loads(raw)
    except (ValueError, RecursionError) as error:  # only a forger can get here: the digest matched
        raise SealError(f"it is not JSON: {error}") from error
    assert isinstance(document, dict)
    return document
