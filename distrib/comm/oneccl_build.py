"""Compiling the oneCCL backend for the installed torch, once, into the user's cache.

Nothing is installed: the wheels of oneCCL (a static library), of Intel MPI (libfabric and its providers) and of
libhwloc are fetched with pip, verified by their digests, and what is needed is taken out of them.
"""

from __future__ import annotations

import importlib.metadata
import platform
import re
import shutil
import sys
import sysconfig
import tempfile
import zipfile
from pathlib import Path

from distrib.comm.building import (
    Tell,
    building_alone,
    cache_folder,
    check_tools,
    digest,
    first_line,
    run_tool,
    shared_folder,
)
from distrib.errors import MissingPartError, storage_errors

NAME = "distrib_oneccl"
WHEELS = {
    "oneccl-devel": ("2022.1.2", "bdf97644da971fc112b6bd53d6e22e8ff032fb8f32442bb914e98727442c229d"),
    "impi-rt": ("2021.18.1", "51ca89c1e64e60d86a7d40a7d6124312ba63aafc03fb6aacc140b3c66371d814"),
    "tcmlib": ("1.6.0", "46c2491988bfd18c4733eeb08aca6a386706a497b92cc51d155f37ddea003c14"),
}
"""name -> (version, SHA-256). oneCCL is fixed: its C++ interface is to give way to another."""
SOURCES = ("oneccl.cpp", "peer_watch.hpp")
_KEPT = re.compile(r"[^/]+\.data/data/lib/(libfabric\.so\.1|lib\w[\w.-]*-fi\.so|libhwloc\.so\.15)")
_NEEDED = re.compile(r"[^/]+\.data/data/(include/oneapi/.+|lib/ccl/cpu/lib/libccl\.a)")
_HERE = Path(__file__).parent


def find_extension() -> Path | None:
    """The newest extension that fits this torch, Python, machine and source; None if there is none.

    Looks in the user's cache and in what this Python environment carries.
    """
    built = [path for folder in (cache_folder("oneccl"), shared_folder("oneccl"))
             for path in folder.glob(f"{_key()}-*/{NAME}.so") if path.is_file()]
    return max(built, key=lambda path: path.stat().st_mtime, default=None)


def build(tell: Tell) -> None:
    """Compile the extension, unless this compiler has done so. Raises MissingPartError or StorageError."""
    check_tools("the oneCCL backend", {"g++": "g++"})
    include = Path(sysconfig.get_paths()["include"])
    if not (include / "Python.h").is_file():
        raise MissingPartError("the oneCCL backend needs the headers of Python", "nothing was built",
                               "as root: apt-get install python3-dev")
    compiler = first_line("g++", "-dumpfullversion")
    folder = cache_folder("oneccl") / f"{_key()}-g++{compiler}"
    with (storage_errors("the cache of extensions could not be written", "the oneCCL backend was not built"),
          building_alone(folder, tell)):
        if (folder / f"{NAME}.so").is_file():
            tell("the oneCCL backend is built already")
            return
        tell("building the oneCCL backend: 160 MB to fetch, then about a minute")
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
            made = Path(scratch, "made")
            made.mkdir()
            _fetch(Path(scratch))
            for wheel in Path(scratch, "wheels").glob("*.whl"):
                _unpack(wheel, _KEPT, made)
                _unpack(wheel, _NEEDED, Path(scratch, "oneccl"))
            _compile(Path(scratch, "oneccl"), include, made)
            shutil.rmtree(folder, ignore_errors=True)
            made.rename(folder)


def _key() -> str:
    """All that the binary depends on but the compiler, which a node that only computes need not have."""
    torch = importlib.metadata.version("torch")
    source = [(_HERE / name).read_text() for name in SOURCES]
    facts = (torch, str(WHEELS), sys.implementation.cache_tag, platform.machine(), *platform.libc_ver(), *source)
    return f"torch{torch}-{digest(facts)}"


def _fetch(scratch: Path) -> None:
    requirements = scratch / "requirements.txt"
    requirements.write_text("".join(f"{name}=={version} --hash=sha256:{sha256}\n"
                                    for name, (version, sha256) in WHEELS.items()))
    run_tool([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:",
              "--require-hashes", "--requirement", str(requirements), "--dest", str(scratch / "wheels")], {},
             "oneCCL could not be fetched")


def _unpack(wheel: Path, wanted: re.Pattern[str], target: Path) -> None:
    """Take the files out of a wheel whose names match; the pattern's group is their path below ``target``."""
    with zipfile.ZipFile(wheel) as archive:
        for info in archive.infolist():
            found = wanted.fullmatch(info.filename)
            if found is None or info.is_dir() or ".." in found[1]:
                continue
            path = target / found[1]
            path.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(info) as source, path.open("wb") as out:
                shutil.copyfileobj(source, out)


def _compile(oneccl: Path, include: Path, made: Path) -> None:
    # The root of the installed torch, without the second that its import takes.
    torch = Path(str(importlib.metadata.distribution("torch").locate_file("torch")))
    headers = (torch / "include", torch / "include/torch/csrc/api/include", oneccl / "include", include)
    run_tool([
        "g++", "-O2", "-std=c++20", "-fPIC", "-shared", f"-DTORCH_EXTENSION_NAME={NAME}",
        "-DTORCH_API_INCLUDE_EXTENSION_H", "-D_GLIBCXX_USE_CXX11_ABI=1",
        *(word for folder in headers for word in ("-isystem", str(folder))),
        str(_HERE / "oneccl.cpp"), "-o", str(made / f"{NAME}.so"),
        str(oneccl / "lib/ccl/cpu/lib/libccl.a"), "-Wl,--exclude-libs,libccl.a", "-Wl,-rpath,$ORIGIN",
        f"-L{torch / 'lib'}", "-ltorch", "-ltorch_cpu", "-ltorch_python", "-lc10", f"-L{made}", "-l:libhwloc.so.15",
        "-ldl",
    ], {}, "the oneCCL backend could not be compiled")
