"""Which ranks an elastic job has lost, and what became of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from launch.report import Ending

SETTLE_S = 3.0
"""After one rank failed, the others have so long to fail by themselves, with their own messages."""


class Losses:
    """The losses of one attempt. Times are of the monotonic clock."""

    def __init__(self) -> None:
        self._due_at: dict[int, float] = {}
        self._told: set[int] = set()
        self._ever: dict[int, str] = {}
        self.came_back: set[int] = set()

    def due(self, endings: Iterable[Ending], now: float) -> list[Ending]:
        """Failures that are to be told now: each once, and not before all others had the time to fail as well."""
        failed = [ending for ending in endings if ending.code and ending.rank not in self._told]
        for ending in failed:
            self._due_at.setdefault(ending.rank, now + SETTLE_S)
            self._ever.setdefault(ending.rank, ending.cause)
        due = [ending for ending in failed if now >= self._due_at[ending.rank]]
        self._told |= {ending.rank for ending in due}
        return due

    def due_at(self) -> float:
        """When the next one is to be told; infinity: there is none."""
        return min((at for rank, at in self._due_at.items() if rank not in self._told), default=float("inf"))

    def comes_back(self, rank: int) -> None:
        """A lost rank was started again."""
        self.came_back.add(rank)
        self._told.discard(rank)
        del self._due_at[rank]

    def fates(self, endings: Iterable[Ending]) -> dict[int, str]:
        """At the end of the job: every rank that was lost or failed, and how."""
        ended = {ending.rank: ending for ending in endings}
        lost = {ending.rank: ending.cause for ending in ended.values() if ending.code} | self._ever
        return {rank: cause + (", and came back" if rank in ended and ended[rank].code == 0 else "")
                for rank, cause in lost.items()}

    def speaker(self, endings: Sequence[Ending]) -> int | None:
        """Who spoke for all at the end where rank 0, which was lost, did not; None: rank 0 did."""
        if 0 not in self.fates(endings):
            return None
        return min((ending.rank for ending in endings if ending.code == 0 and ending.rank not in self._ever),
                   default=None)
