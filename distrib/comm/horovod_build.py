"""Building Horovod from its source release for this very torch, once for each kind of machine and versions.

Its wheel is kept in the user's cache, in a folder whose name holds all that the binary depends on, so another torch,
MPI, compiler or processor architecture never meets a stale one.
"""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
import sys
import tempfile
from pathlib import Path

from distrib.comm.building import Tell, building_alone, cache_folder, check_tools, digest, first_line, run_tool
from distrib.errors import MissingPartError, storage_errors

RELEASE = "0.28.1"
PYTHON_PARTS = ("setuptools", "wheel", "packaging", "cloudpickle", "psutil", "pyyaml")
"""What its build and its import need beside torch; it is installed without looking for dependencies."""
DEBIAN_PARTS = {"c++": "g++", "cmake": "cmake", "make": "make", "mpicxx": "libopenmpi-dev", "mpirun": "openmpi-bin"}
JOBS = 2

# Its CMake files ask for C++14 at the end of every command, torch's headers for C++20; the last one holds.
COMPILER = '#!/bin/sh\nexec c++ "$@" -std=gnu++20\n'
CHOICES = {
    "HOROVOD_WITH_PYTORCH": "1", "HOROVOD_WITHOUT_TENSORFLOW": "1", "HOROVOD_WITHOUT_MXNET": "1",
    "HOROVOD_WITH_MPI": "1", "HOROVOD_WITH_GLOO": "1", "HOROVOD_CPU_OPERATIONS": "MPI",
}


def build(tell: Tell) -> None:
    """Build Horovod, or take the wheel of an earlier build, and install it beside this Python's torch.

    Raises MissingPartError if a tool is missing or the build fails, StorageError if the cache can not be written.
    """
    _check_tools()
    folder = cache_folder("wheels") / _key()
    with (storage_errors("the cache of wheels could not be written", "Horovod was not built"),
          building_alone(folder, tell)):
        if (wheel := _wheel_in(folder)) is None:
            tell(f"building Horovod {RELEASE}; this takes about five minutes")
            wheel = _build_into(folder)
        tell(f"installing {wheel.name}")
        run_tool([sys.executable, "-m", "pip", "install", "--no-deps", "--force-reinstall", str(wheel)], {},
                 "Horovod could not be installed")


def _key() -> str:
    """A folder's name: the release and torch to be read, and a digest of everything that the binary depends on."""
    torch = importlib.metadata.version("torch")
    facts = (RELEASE, torch, sys.implementation.cache_tag, platform.machine(), first_line("c++", "--version"),
             first_line("mpirun", "--version"), *platform.libc_ver(), _processor_flags(), COMPILER, str(CHOICES))
    return f"horovod{RELEASE}-torch{torch}-{digest(facts)}"


def _processor_flags() -> str:
    """Whether the processor has what Horovod's build uses where the building machine has it."""
    try:
        words = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return ""
    return " ".join(sorted(words & {"avx", "f16c", "fma"}))


def _check_tools() -> None:
    check_tools("Horovod's build", DEBIAN_PARTS)
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
        run_tool([sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "--no-cache-dir",
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
