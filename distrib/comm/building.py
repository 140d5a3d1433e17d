"""What building an optional part takes: a folder in the user's cache, one builder at a time, tools that are run."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from distrib.errors import MissingPartError

Tell = Callable[[str], None]

_LIMIT_S = 3600
_KEPT_LINES = 15


def cache_folder(part: str) -> Path:
    """Where builds of a part are kept, outside of any checkout."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "distrib" / part


def shared_folder(part: str) -> Path:
    """Where an image, or an environment that many use, carries builds of a part (XDG_CACHE_HOME=PREFIX/share)."""
    return Path(sys.prefix, "share", "distrib", part)


def digest(facts: Iterable[str]) -> str:
    """16 hexadecimal digits that change with any of the facts."""
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:16]


@contextlib.contextmanager
def building_alone(folder: Path, tell: Tell) -> Iterator[None]:
    """Two builds of the same folder take turns; the second finds what the first made."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(folder.name + ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            tell("waiting for another build of the same")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def check_tools(what: str, packages: Mapping[str, str]) -> None:
    """Raises MissingPartError unless every program (name -> Debian package) is found."""
    missing = [package for tool, package in packages.items() if shutil.which(tool) is None]
    if missing:
        raise MissingPartError(f"{what} needs {', '.join(missing)}", "nothing was built",
                               f"as root: apt-get install {' '.join(missing)}")


def first_line(*command: str) -> str:
    """The first line that a program prints; nothing if it is not there."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except OSError:
        return ""
    return done.stdout.partition("\n")[0]


def run_tool(command: Sequence[str], environment: Mapping[str, str], failure: str) -> None:
    """Run a program to its end; its last words go to stderr, and the first error becomes a MissingPartError."""
    with subprocess.Popen(command, env={**os.environ, **environment}, stdout=subprocess.PIPE, text=True,
                          stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, errors="replace") as process:
        try:
            output, _ = process.communicate(timeout=_LIMIT_S)
        except BaseException:
            process.kill()
            raise
    if process.returncode:
        for line in output.splitlines()[-_KEPT_LINES:]:
            print(line, file=sys.stderr)
        telling = [line for line in output.splitlines() if "error" in line.lower()] or ["it ended without a word"]
        raise MissingPartError(f"{failure}: {telling[0].strip()[:300]}", "nothing was changed",
                               "its last lines are above")
