"""Building Horovod from its source release for this very torch, once for each kind of machine and versions.

Its wheel is kept in the user's cache, in a folder whose name holds all that the binary depends on, so another torch,
MPI, compiler or processor architecture never meets a stale one.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from distrib.errors import MissingPartError, storage_errors

RELEASE = "0.28.1"
PYTHON_PARTS = ("setuptools", "wheel", "packaging", "cloudpickle", "psutil", "pyyaml")
"""What its build and its import need beside torch; it is installed without looking for dependencies."""
DEBIAN_PARTS = {"c++": "g++", "cmake": "cmake", "make": "make", "mpicxx": "libopenmpi-dev", "mpirun": "openmpi-bin"}
JOBS = 2
LIMIT_S = 3600
KEPT_LINES = 15

# Its CMake files ask for C++14 at the end of every command, torch's headers for C++20; the last one holds.
COMPILER = '#!/bin/sh\nexec c++ "$@" -std=gnu++20\n'
CHOICES = {
    "HOROVOD_WITH_PYTORCH": "1", "HOROVOD_WITHOUT_TENSORFLOW": "1", "HOROVOD_WITHOUT_MXNET": "1",
    "HOROVOD_WITH_MPI": "1", "HOROVOD_WITH_GLOO": "1", "HOROVOD_CPU_OPERATIONS": "MPI",
}
Tell = Callable[[str], None]


def build(tell: Tell) -> None:
    """Build Horovod, or take the wheel of an earlier build, and install it beside this Python's torch.

    Raises MissingPartError if a tool is missing or the build fails, StorageError if the cache can not be written.
    """
    _check_tools()
    folder = _cache() / _key()
    with storage_errors("the cache of wheels could not be written", "Horovod was not built"):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _lock(folder.with_name(folder.name + ".lock"), tell):
            if (wheel := _wheel_in(folder)) is None:
                tell(f"building Horovod {RELEASE}; this takes about five minutes")
                wheel = _build_into(folder)
            tell(f"installing {wheel.name}")
            _run([sys.executable, "-m", "pip", "install", "--no-deps", "--force-reinstall", str(wheel)], {},
                 "Horovod could not be installed")


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "distrib" / "wheels"


def _key() -> str:
    """A folder's name: the release and torch to be read, and a digest of everything that the binary depends on."""
    torch = importlib.metadata.version("torch")
    facts = (RELEASE, torch, sys.implementation.cache_tag, platform.machine(), _first_line("c++", "--version"),
             _first_line("mpirun", "--version"), *platform.libc_ver(), _processor_flags(), COMPILER, str(CHOICES))
    digest = hashlib.sha256("\n".join(facts).encode()).hexdigest()[:16]
    return f"horovod{RELEASE}-torch{torch}-{digest}"


def _processor_flags() -> str:
    """Whether the processor has what Horovod's build uses where the building machine has it."""
    try:
        words = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return ""
    return " ".join(sorted(words & {"avx", "f16c", "fma"}))


def _check_tools() -> None:
    missing = [package for tool, package in DEBIAN_PARTS.items() if shutil.which(tool) is None]
    if missing:
        raise MissingPartError(f"Horovod's build needs {', '.join(missing)}", "nothing was built",
                               f"as root: apt-get install {' '.join(missing)}")
    installed = {distribution.name.lower() for distribution in importlib.metadata.distributions()}
    if absent := [part for part in PYTHON_PARTS if part not in installed]:
        raise MissingPartError(f"Horovod's build needs the Python packages {', '.join(absent)}", "nothing was built",
                               f"pip install {' '.join(absent)}")


def _build_into(folder: Path) -> Path:
    """The wheel, in its final place, whole: the folder appears by one rename."""
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
        compiler, made = Path(scratch, "c++"), Path(scratch, "made")
        compiler.write_text(COMPILER)
        compiler.chmod(0o755)
        _run([sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "--no-cache-dir",
              "--wheel-dir", str(made), f"horovod=={RELEASE}"],
             {**CHOICES, "CXX": str(compiler), "MAKEFLAGS": f"-j{JOBS}"}, "Horovod could not be built")
        if _wheel_in(made) is None:
            raise MissingPartError("Horovod's build left no wheel", "Horovod was not installed", "build it again")
        shutil.rmtree(folder, ignore_errors=True)
        made.rename(folder)
    wheel = _wheel_in(folder)
    assert wheel is not None
    return wheel


def _wheel_in(folder: Path) -> Path | None:
    return next(iter(sorted(folder.glob("horovod-*.whl"))), None)


@contextlib.contextmanager
def _lock(path: Path, tell: Tell) -> Iterator[None]:
    """Two builds of the same take turns; the second finds the first's wheel."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            tell("waiting for another build of the same")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _first_line(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return done.stdout.partition("\n")[0]


def _run(command: list[str], environment: dict[str, str], failure: str) -> None:
    """Run a program to its end; its last words become the error."""
    with subprocess.Popen(command, env={**os.environ, **environment}, stdout=subprocess.PIPE, text=True,
                          stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, errors="replace") as process:
        try:
            output, _ = process.communicate(timeout=LIMIT_S)
        except BaseException:
            process.kill()
            raise
    if process.returncode:
        for line in output.splitlines()[-KEPT_LINES:]:
            print(line, file=sys.stderr)
        telling = [line for line in output.splitlines() if "error" in line.lower()] or ["it ended without a word"]
        raise MissingPartError(f"{failure}: {telling[0].strip()[:300]}", "nothing was changed",
                               "its last lines are above")
