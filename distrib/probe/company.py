"""The probes that came: what they tell each other, and how they keep in step, through one store."""

from __future__ import annotations

import datetime
import json
import time
from collections.abc import Callable
from typing import Any

from distrib.comm.meeting import open_store
from distrib.world import World

MEET_S = 60.0
"""A node that reads torch from a slow file server for the first time may need so long to come."""
STEP_S = 30.0
"""No step of all takes longer."""


class Company:
    """Every method is collective among `ranks`. A RuntimeError says that somebody left or can not be reached."""

    def __init__(self, world: World) -> None:
        self._rank, self._steps = world.rank, 0
        self._store = open_store(world, datetime.timedelta(seconds=MEET_S))
        self._set(f"here/{world.rank}", True)
        if world.is_first:
            end = time.monotonic() + MEET_S
            here = [rank for rank in range(world.size) if self._comes(rank, end)]
            self._set("ranks", here)
        self.ranks: list[int] = self._get("ranks", 2 * MEET_S)
        self.absent = sorted(set(range(world.size)) - set(self.ranks))

    def share(self, what: str, value: Any) -> dict[int, Any]:
        """Everybody's value, by rank. Plain JSON values."""
        said: dict[str, Any] = self.decide(what, value, lambda values: values)
        return {int(rank): value for rank, value in said.items()}

    def decide(self, what: str, value: Any, decision: Callable[[dict[int, Any]], Any]) -> Any:
        """What the first rank decides from everybody's values, by rank."""
        self._steps += 1
        self._set(f"{self._steps}/{what}/{self._rank}", value)
        if self._rank == self.ranks[0]:
            said = {rank: self._get(f"{self._steps}/{what}/{rank}") for rank in self.ranks}
            self._set(f"{self._steps}/{what}", decision(said))
        return self._get(f"{self._steps}/{what}")

    def wait(self) -> None:
        """Until all are here."""
        self._steps += 1
        if self._store.add(f"{self._steps}/came", 1) == len(self.ranks):
            self._set(f"{self._steps}/all", True)
        self._get(f"{self._steps}/all")

    def leave(self) -> None:
        """The first rank keeps the store, and so leaves last."""
        came = f"{self._steps}/left"
        self._store.add(came, 1)
        end = time.monotonic() + STEP_S
        while self._rank == self.ranks[0] and self._store.add(came, 0) < len(self.ranks) and time.monotonic() < end:
            time.sleep(0.05)

    def _comes(self, rank: int, end: float) -> bool:
        try:
            self._get(f"here/{rank}", max(0.1, end - time.monotonic()))
        except RuntimeError:
            return False
        return True

    def _set(self, key: str, value: Any) -> None:
        self._store.set(key, json.dumps(value))

    def _get(self, key: str, timeout_s: float = STEP_S) -> Any:
        self._store.wait([key], datetime.timedelta(seconds=timeout_s))
        return json.loads(self._store.get(key))
