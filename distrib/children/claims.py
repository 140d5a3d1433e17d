"""Who sees to a trial: one living process at a time, by a lease in the study's folder."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from distrib.elastic.lease import Lease, is_gone
from distrib.errors import ConfigError
from distrib.rundir import RunDir

_PATIENCE_S = 120.0
_LOOK_S = 0.2


class Claims:
    """What this process knows of others' leases. ``unchanged_s``: after that without a sign, a holder counts as gone.

    Whether a process on another machine lives shows only by its signs; so this remembers when it saw the last.
    """

    def __init__(self, host: str, unchanged_s: float) -> None:
        self._host, self._unchanged_s = host, unchanged_s
        self._first: dict[RunDir, tuple[int, dict[str, Any]]] = {}
        self._seen: dict[RunDir, tuple[tuple[int, dict[str, Any]], float]] = {}

    def is_held(self, place: RunDir) -> bool:
        """Whether a process that lives, as far as can be seen, has this lease. Does not wait. Raises OSError."""
        token, holder = newest = self._lease(place).newest()
        if token < 0 or holder.get("released"):
            return False
        gone = is_gone(holder.get("process", {}))
        if gone is not None:
            return not gone
        now = time.monotonic()
        before = self._seen.get(place)
        if before is None or before[0] != newest:
            before = self._seen[place] = (newest, now)
        return now - before[1] < self._unchanged_s

    def lives(self, place: RunDir) -> bool:
        """Whether the holder was certainly there since this looked first: it runs here, or showed another sign."""
        token, holder = newest = self._lease(place).newest()
        if token < 0 or holder.get("released"):
            return False
        if is_gone(holder.get("process", {})) is False:
            return True
        first = self._first.setdefault(place, newest)
        return first != newest

    def make_sure(self, places: Sequence[RunDir]) -> None:
        """Wait until `is_held` is sure of these leases: not for processes that run here, at most ``unchanged_s`` for
        others. Raises OSError.
        """
        while any(self.is_held(place) and not self.lives(place) for place in places):
            time.sleep(_LOOK_S)

    def claim(self, place: RunDir) -> Lease | None:
        """Take a lease that nobody holds; None if somebody does, or was quicker. Raises StorageError, OSError."""
        if self.is_held(place):
            return None
        lease = self._lease(place)
        return lease if lease.claim(lease.newest()[0] + 1) else None

    @contextmanager
    def held(self, place: RunDir) -> Iterator[None]:
        """A lease that is held for a moment only; waits for it. Raises ConfigError, StorageError, OSError."""
        deadline = time.monotonic() + _PATIENCE_S
        while (lease := self.claim(place)) is None:
            if time.monotonic() > deadline:
                raise ConfigError(f"another process does not let go of {place.root}", "nothing was started",
                                  "end it, and start this again")
            time.sleep(_LOOK_S)
        try:
            yield
        finally:
            lease.release()

    def _lease(self, place: RunDir) -> Lease:
        return Lease(place, self._host, self._unchanged_s)
