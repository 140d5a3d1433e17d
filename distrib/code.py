"""Which code this is: version, commit, and a digest of its files."""

from __future__ import annotations

import hashlib
from pathlib import Path

from distrib import __version__

_PACKAGE = Path(__file__).resolve().parent
_KINDS = (".py", ".cpp", ".hpp")


def code_record() -> dict[str, str | None]:
    """{"distrib": version, "git": commit or None, "sha256"}: the digest tells changed files, too, and needs no git."""
    return {"distrib": __version__, "git": git_commit(_PACKAGE.parent), "sha256": code_sha256(_PACKAGE)}


def code_sha256(package: Path) -> str:
    """SHA-256 over the paths and bytes of a package's source files, sorted by path. Raises OSError."""
    digest = hashlib.sha256()
    for path in sorted(path for path in package.rglob("*") if path.suffix in _KINDS):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(package).as_posix()}\n{len(content)}\n".encode() + content)
    return digest.hexdigest()


def git_commit(root: Path) -> str | None:
    """The commit that a source tree has checked out, from git's own files; None outside a checkout."""
    try:
        git = root / ".git"
        head = (git / "HEAD").read_text().strip()
        if not head.startswith("ref: "):
            return head
        name = head.removeprefix("ref: ")
        if (git / name).exists():
            return (git / name).read_text().strip()
        for line in (git / "packed-refs").read_text().splitlines():
            if line.endswith(f" {name}"):
                return line.split(" ")[0]
    except (OSError, UnicodeDecodeError):
        pass
    return None
