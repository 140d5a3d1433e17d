"""The right to write into a run's folder: one training at a time has it, and a later one fences off an earlier.

``lease/000000007.json`` is token 7. Making the file, which only one can, takes the lease; the highest token counts.
Its holder writes it anew every few seconds. So whoever finds it unchanged for longer knows that the holder is gone, or
that it can not write: nobody needs another's clock. Who has a lower token must write nothing more.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from distrib.errors import CheckpointError, storage_errors
from distrib.rundir import RunDir

_NAME = re.compile(r"(\d{9,})\.json")
_KEPT = 2


def process_identity() -> dict[str, Any]:
    """What tells this process from all others, now and later, on every machine."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        namespace, started = os.readlink("/proc/self/ns/pid"), _started(os.getpid())
    except OSError:
        boot, namespace, started = "", "", 0
    return {"boot": boot, "namespace": namespace, "pid": os.getpid(), "started": started}


def _started(pid: int) -> int:
    """When a process began, in ticks since the machine did: unlike a date it does not change when the clock is set.
    Raises OSError if it has ended, also if nobody has asked yet how."""
    stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    fields = stat[stat.rindex(")") + 2:].split()
    if fields[0] in "ZX":
        raise ProcessLookupError
    return int(fields[19])


def is_gone(identity: dict[str, Any]) -> bool | None:
    """Whether a process has ended; None if that can not be seen from here."""
    mine = process_identity()
    if not mine["boot"] or any(mine[name] != identity.get(name) for name in ("boot", "namespace")):
        return None
    try:
        return bool(_started(int(identity["pid"])) != identity["started"])
    except (OSError, KeyError, ValueError, TypeError):
        return True


class Lease:
    """One process's hold on a run's folder. ``unchanged_s``: after that without a sign a holder counts as gone."""

    def __init__(self, run: RunDir, host: str, unchanged_s: float) -> None:
        self._folder, self._host, self._unchanged_s = run.lease, host, unchanged_s
        self.token = -1
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def take(self, tell: Callable[[str], None]) -> None:
        """Get the lease for a run that begins or goes on. Raises CheckpointError if somebody has it."""
        token, holder = self.newest()
        if token >= 0 and not holder.get("released"):
            gone = is_gone(holder.get("process", {}))
            if gone is None:
                tell(f"the run folder was in use by a training on {holder.get('host')} that did not end in order; "
                     f"waiting {self._unchanged_s:g} s for a sign of it")
                gone = self.is_unchanged()
            if not gone:
                raise self._taken(holder)
        if not self.claim(token + 1):
            raise self._taken(self.newest()[1])

    def claim(self, token: int) -> bool:
        """Take the lease as ``token``, and keep it; False if there is such a token, or a higher one."""
        with storage_errors(f"the lease in {self._folder} could not be taken", "the run was not continued"):
            self._folder.mkdir(parents=True, exist_ok=True)
            if self.newest()[0] >= token:
                return False
            try:
                self._path(token).open("x").close()
            except FileExistsError:
                return False
            self.token = token
            with contextlib.suppress(OSError):  # the name is what counts, and a full disk has room for it yet
                self._write(self._content(0))
            for old in sorted(self._tokens())[:-_KEPT]:
                self._path(old).unlink(missing_ok=True)
        if self._thread is None:
            self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)
            self._thread.start()
        return True

    def is_ours(self) -> bool:
        """Whether no later token was taken. Raises OSError."""
        return self.token >= 0 and max(self._tokens(), default=-1) <= self.token

    def is_unchanged(self) -> bool:
        """Wait: whether the newest token shows no sign of its holder for `unchanged_s`."""
        before = self.newest()
        deadline = time.monotonic() + self._unchanged_s
        while time.monotonic() < deadline:
            if self.newest() != before:
                return False
            time.sleep(0.2)
        return True

    def newest(self) -> tuple[int, dict[str, Any]]:
        """(highest token, what its holder wrote); (-1, {}) if there is none."""
        token = max(self._tokens(), default=-1)
        try:
            holder = json.loads(self._path(token).read_bytes())
        except (OSError, ValueError):
            holder = {}
        return token, holder if isinstance(holder, dict) else {}

    def release(self) -> None:
        """Give it up, if it is ours: the next training need not wait."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join(self._unchanged_s)
        with contextlib.suppress(OSError):
            if self.is_ours():
                self._write(self._content(-1, released=True))

    def _renew(self) -> None:
        for number in itertools.count(1):
            if self._ended.wait(self._unchanged_s / 5):
                return
            with contextlib.suppress(OSError):  # a full or absent disk shows when something of worth is written
                self._write(self._content(number))

    def _write(self, content: str) -> None:
        path = self._path(self.token)
        temporary = path.with_name(f".{path.name}.tmp")
        temporary.write_text(content)
        os.replace(temporary, path)

    def _content(self, number: int, *, released: bool = False) -> str:
        return json.dumps({"host": self._host, "process": process_identity(), "sign": number, "released": released})

    def _tokens(self) -> list[int]:
        try:
            names = os.listdir(self._folder)
        except FileNotFoundError:
            return []
        return [int(match[1]) for match in map(_NAME.fullmatch, names) if match]

    def _path(self, token: int) -> Path:
        return self._folder / f"{token:09d}.json"

    def _taken(self, holder: dict[str, Any]) -> CheckpointError:
        return CheckpointError(f"another training is writing into {self._folder.parent}, on {holder.get('host')}",
                               "nothing was started", "wait for it, end it, or give another --run folder")
