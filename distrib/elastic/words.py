"""What members say of views, as words on the wire and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from distrib.elastic.membership import Position, Report, View
from distrib.elastic.wire import Place, Word


@dataclass(frozen=True)
class Regrouped:
    """A new view, the same for all its members."""

    view: View
    places: Mapping[int, Place]
    positions: Mapping[int, Position]
    source: int
    """The member whose state all take."""
    lost: tuple[int, ...]
    """Who was in the view before, and is not in this one."""
    store: tuple[str, int]
    """Address and port of the leader's store for this view."""

    @property
    def is_level(self) -> bool:
        """Whether all members have the same state already."""
        return len(set(self.positions.values())) == 1

    def as_word(self) -> Word:
        """For `Regrouped.of`."""
        return {"view": vars(self.view), "places": {member: vars(place) for member, place in self.places.items()},
                "positions": dict(self.positions), "source": self.source, "lost": self.lost, "store": self.store}

    @classmethod
    def of(cls, word: Word) -> Regrouped:
        """What a leader said."""
        return cls(_view(word["view"]), {int(member): Place(**place) for member, place in word["places"].items()},
                   {int(member): Position(*position) for member, position in word["positions"].items()},
                   int(word["source"]), tuple(word["lost"]), tuple(word["store"]))


def report_as_word(report: Report) -> Word:
    """For `report_of`."""
    return {"view": vars(report.view), "hears": sorted(report.hears), "dead": sorted(report.dead),
            "position": report.position, "fault": report.fault}


def report_of(word: Word) -> Report:
    """What a member said."""
    position = Position(*word["position"]) if word["position"] is not None else None
    return Report(_view(word["view"]), frozenset(word["hears"]), frozenset(word["dead"]), position, str(word["fault"]))


def _view(fields: Mapping[str, Any]) -> View:
    return View(int(fields["epoch"]), tuple(int(member) for member in fields["members"]), int(fields["next_member"]))
