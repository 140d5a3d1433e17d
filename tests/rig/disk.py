"""A small disk: a tmpfs in a mount namespace of its own, which ends with the process that holds it. Needs root."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

HOLD = 'mount -t tmpfs -o size="$1" tmpfs "$2" && echo held && read end'


@dataclass(frozen=True)
class SmallDisk:
    """A file system that can be filled, made read-only and taken away."""

    pid: int
    inside: Path
    """Where it is mounted, for processes in its namespace."""

    @property
    def path(self) -> Path:
        """Where it is for everybody else."""
        return Path(f"/proc/{self.pid}/root{self.inside}")

    @property
    def enter(self) -> tuple[str, ...]:
        """Words before a command that shall run in the namespace."""
        return "nsenter", f"--mount=/proc/{self.pid}/ns/mnt", f"--wdns={Path.cwd()}"

    def mount(self, *words: str) -> None:
        subprocess.run([*self.enter, *words], check=True, capture_output=True)

    def fill(self, name: str = "filler") -> Path:
        """A file that takes all that is free, while others may write too."""
        path = self.path / name
        with path.open("wb") as file:
            while (free := shutil.disk_usage(self.path).free) > 0:
                with contextlib.suppress(OSError):
                    os.posix_fallocate(file.fileno(), path.stat().st_size, free)
        return path


@contextlib.contextmanager
def small_disk(folder: Path, size: str) -> Iterator[SmallDisk]:
    """``size`` as mount takes it."""
    folder.mkdir()
    holder = subprocess.Popen(["unshare", "--mount", "sh", "-c", HOLD, "hold", size, folder],
                              stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        assert holder.stdout is not None
        if holder.stdout.readline() != "held\n":
            assert os.environ.get("CI") != "true", "mounting failed"
            pytest.skip("mounting needs root")
        yield SmallDisk(holder.pid, folder)
    finally:
        holder.communicate()
