"""The shared folder of the doctor's job, as a probe uses it. Standard library only: torch may be what is missing.

::

    hosts.json        by which name the launcher reaches each rank's host; empty if only Slurm knows
    probe-RANK.json   what a probe found, replaced as a whole after every part
    token-RANK        a word that only this probe knows, to see whether others see it
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

LOOK_S = 0.1


class ProbeFolder:
    """Errors of the file system are not caught: without the folder nothing can be told."""

    def __init__(self, path: Path, rank: int) -> None:
        self.path, self.rank = path, rank
        self.found: dict[str, Any] = {"rank": rank}

    def put(self, found: dict[str, Any]) -> None:
        """Add to what this probe has found, and replace its file."""
        self.found |= found
        _replace(self.path / f"probe-{self.rank}.json", json.dumps(self.found, allow_nan=False))

    def names(self) -> list[str]:
        """The launcher's names of the ranks' hosts; empty if it has none."""
        try:
            names = json.loads((self.path / "hosts.json").read_bytes())
        except (OSError, ValueError):
            return []
        return [str(name) for name in names] if isinstance(names, list) else []

    def put_token(self, token: str) -> None:
        """Make this probe's token."""
        _replace(self.path / f"token-{self.rank}", token)

    def unseen(self, tokens: dict[int, str], timeout_s: float) -> list[int]:
        """Ranks whose token is not to be seen here, or is another one, until the time is over."""
        deadline = time.monotonic() + timeout_s
        missing = sorted(tokens)
        while True:
            # Listing a folder has a network file system look anew for names that it knew to be absent.
            os.listdir(self.path)
            missing = [rank for rank in missing if not self._sees(rank, tokens[rank])]
            if not missing or time.monotonic() >= deadline:
                return missing
            time.sleep(LOOK_S)

    def _sees(self, rank: int, token: str) -> bool:
        try:
            return (self.path / f"token-{rank}").read_text() == token
        except (OSError, ValueError):
            return False


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
