"""The container image, built by buildah and run by podman, without a Docker engine. Needs root and Debian's tools.

Everything lies in one folder of the user's cache: Debian's base, the wheels, the storage of both programs. An image is
named by the digest of all that it is made of, so one that is out of date is never run.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from distrib.comm.building import building_alone, cache_folder, digest
from distrib.comm.oneccl_build import WHEELS

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = {"buildah": "buildah", "podman": "podman", "runc": "runc", "conmon": "conmon", "debootstrap": "debootstrap"}
"""Program -> Debian package."""
BASE = "localhost/debian:bookworm-slim"
IMAGE = "localhost/distrib"
_SOURCES = ("Dockerfile", ".dockerignore", "constraints.txt", "pyproject.toml", "README.md", "distrib", "launch",
            "cluster_configs/container.yaml")
_PYTHON = "3.11"  # of Debian 12
_numbers = itertools.count()


def why_not() -> str | None:
    """Why no image can be built here; None if one can."""
    if os.geteuid() != 0:
        return "building an image needs root"
    missing = [package for tool, package in PACKAGES.items() if shutil.which(tool) is None]
    return f"missing: apt-get install {' '.join(missing)}" if missing else None


class Image:
    """The image of this checkout, made or found."""

    def __init__(self) -> None:
        self.folder = cache_folder("test-image")
        self.folder.mkdir(parents=True, exist_ok=True)
        self.name = f"{IMAGE}:{_digest_of_sources()}"
        with building_alone(self.folder / "build", print):
            if not self._has(self.name):
                self._build()

    def run(self, *command: str, options: Sequence[str] = (), before: Sequence[str] = (),
            limit_s: float = 120) -> subprocess.CompletedProcess[str]:
        """Run a command through the image's entry point, in a container that is removed whatever happens.

        The container has the machine's network and shared memory, and may write to /tmp and what ``options`` mount.
        ``before``: a program and options that start the container, such as mpirun, once a rank.
        """
        label = f"distrib-test={os.getpid()}-{next(_numbers)}"
        podman = ["podman", *self._storage, "--runtime", "runc", "--cgroup-manager", "cgroupfs"]
        argv = [*before, *podman, "run", "--rm", "--label", label, "--network", "host", "--ipc", "host", "--read-only",
                "--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024", "--pull", "never", *options, self.name,
                *command]
        try:
            return subprocess.run(argv, capture_output=True, text=True, timeout=limit_s, check=False)
        finally:
            left = subprocess.run([*podman, "ps", "--all", "--quiet", "--filter", f"label={label}"],
                                  stdout=subprocess.PIPE, text=True, check=True).stdout.split()
            if left:
                subprocess.run([*podman, "rm", "--force", *left], stdout=subprocess.DEVNULL, check=False)

    @cached_property
    def _storage(self) -> list[str]:
        # overlay where the file system of the cache can carry it: vfs copies every layer whole.
        folders = ["--root", str(self.folder / "storage"), "--runroot", str(self.folder / "run")]
        for driver in ("overlay", "vfs"):
            options = [*folders, "--storage-driver", driver]
            if subprocess.run(["buildah", *options, "images"], capture_output=True, check=False).returncode == 0:
                return options
        raise RuntimeError(f"buildah can store nothing in {self.folder}")

    def _buildah(self, *words: str) -> str:
        done = subprocess.run(["buildah", *self._storage, *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                              text=True, check=False, stdin=subprocess.DEVNULL)
        assert done.returncode == 0, f"buildah {words[0]}: {done.stdout[-4000:]}"
        return done.stdout

    def _has(self, name: str) -> bool:
        return subprocess.run(["buildah", *self._storage, "inspect", "--type", "image", name], capture_output=True,
                              check=False).returncode == 0

    def _build(self) -> None:
        base = None if self._has(BASE) else self._begin_base()
        try:
            wheels = self._wheels()
        finally:
            said = base.communicate()[0] if base else ""
        if base:
            assert base.returncode == 0, said[-4000:]
            self._keep_base()
        old = [line for line in self._buildah("images", "--format", "{{.Name}}:{{.Tag}}").splitlines()
               if line.startswith(f"{IMAGE}:")]
        # Layers kept for the next build would double the work of this one.
        self._buildah("bud", "--isolation", "chroot", "--layers=false", "--pull-never", "--build-arg", f"BASE={BASE}",
                      "--build-arg", "PIP_NO_INDEX=1", "--build-arg", "PIP_FIND_LINKS=/wheels",
                      "--volume", f"{wheels}:/wheels:ro", "--tag", self.name, str(ROOT))
        if old:
            self._buildah("rmi", "--force", *old)

    def _begin_base(self) -> subprocess.Popen[str]:
        shutil.rmtree(self.folder / "base", ignore_errors=True)
        return subprocess.Popen(["debootstrap", "--variant=minbase", "bookworm", str(self.folder / "base")],
                                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def _keep_base(self) -> None:
        for part in ("var/cache/apt", "var/lib/apt/lists"):
            shutil.rmtree(self.folder / "base" / part)
        container = self._buildah("from", "scratch").strip()
        self._buildah("add", "--quiet", container, str(self.folder / "base"), "/")
        self._buildah("commit", "--quiet", "--rm", container, BASE)
        shutil.rmtree(self.folder / "base")

    def _wheels(self) -> Path:
        """A folder of all wheels that the image installs, fetched the way this machine's pip is set up."""
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        extension = [f"{name}=={version}" for name, (version, _) in WHEELS.items()]
        wanted = [*project["dependencies"], "setuptools"]
        constraints = ROOT / "constraints.txt"
        folder = self.folder / f"wheels-{digest([*wanted, *extension, constraints.read_text(), _PYTHON])}"
        if folder.is_dir():
            return folder
        for old in self.folder.glob("wheels-*"):
            shutil.rmtree(old)
        made = self.folder / "wheels-new"
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--only-binary", ":all:", "--python-version",
               _PYTHON, "--dest", str(made)]
        subprocess.run([*pip, "--constraint", str(constraints), *wanted], check=True)
        subprocess.run([*pip, "--no-deps", *extension], check=True)
        return made.rename(folder)


def _digest_of_sources() -> str:
    facts = hashlib.sha256()
    for source in _SOURCES:
        path = ROOT / source
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file() and "__pycache__" not in file.parts:
                facts.update(f"{file.relative_to(ROOT)} {file.stat().st_size}\n".encode() + file.read_bytes())
    return facts.hexdigest()[:16]
