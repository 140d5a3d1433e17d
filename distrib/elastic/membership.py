"""Who is left, and who goes on: the pure rules by which ranks agree on a new membership.

Every member has a number that it keeps for life. A *view* is an epoch and the members of it; the rank of a member is
its place among them. When a member hears of trouble it stops at a step boundary and *reports* to all it can reach
which members it can hear, and how far it came. The lowest member of those that go on, the *leader*, has every
report, chooses the next view and sends it to its members. A leader that dies in between is one more loss: the others
report again, to the next lowest. Reports carry their view, so that who missed one catches up.

A member is *dead* when its end of a connection was closed: the kernel does that when a process ends, and nobody
here closes one before. A member that only says nothing is *silent*: it may be stopped, or cut off and going on. So
that two halves of a cut network never both go on, members that hear each other continue only if they are more than
the silent ones, or as many and have the view's leader among them. What is left open by that (as many, and the
leader dead or silent) the lease in the run's folder decides: see `distrib.elastic.lease`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from itertools import combinations
from typing import NamedTuple

MOST_EXACT = 12
"""Up to so many members the largest group that hears each other is found by trying all."""


class Position(NamedTuple):
    """How far a member came, always a step boundary; greater is farther."""

    step: int
    """Steps that were committed; -1: it has no state yet."""
    duties: int = 0
    """1: validation and checkpoint after that step were done too."""


NOTHING_YET = Position(-1)


@dataclass(frozen=True)
class View:
    """Who trains together. ``epoch`` rises with every change, and is the fencing token of the lease."""

    epoch: int
    members: tuple[int, ...]
    """Ascending; a member's rank is its place."""
    next_member: int
    """Number of the next one that joins."""

    @property
    def leader(self) -> int:
        """Rank 0: it holds the lease, logs and writes."""
        return self.members[0]


@dataclass(frozen=True)
class Report:
    """What one member tells of a view that is over."""

    view: View
    hears: frozenset[int]
    """Members that it can hear, itself too."""
    dead: frozenset[int]
    position: Position | None
    """None: it has not reached a step boundary yet."""
    fault: str = ""
    """An error that ends the run, in plain words; empty if there is none."""


class Verdict(Enum):
    WAIT = "reports are missing"
    FOLLOW = "somebody else leads"
    LEAD = "this member chooses the next view"
    LEASE = "as the leads before, but only with the lease of a leader that is gone"
    END = "others may go on without this member"


@dataclass(frozen=True)
class Decision:
    verdict: Verdict
    live: tuple[int, ...] = ()
    """Of LEAD and LEASE: who goes on."""


def decide(me: int, view: View, reports: Mapping[int, Report]) -> Decision:
    """What a member does, given the reports of this view that it has, its own among them."""
    mine = reports[me]
    heard = mine.hears & frozenset(view.members)
    if any(other not in reports for other in heard):
        return Decision(Verdict.WAIT)
    live = largest_group({member: reports[member].hears for member in heard}, view.leader)
    if me not in live:
        return Decision(Verdict.END)
    dead = frozenset[int]().union(*(reports[member].dead for member in live)) - live
    permitted = may_go_on(view, live, dead)
    if permitted is Verdict.END:
        return Decision(Verdict.END)
    if me != min(live):
        return Decision(Verdict.FOLLOW)
    if any(reports[member].position is None for member in live):
        return Decision(Verdict.WAIT)
    return Decision(permitted, tuple(sorted(live)))


def may_go_on(view: View, live: Collection[int], dead: Collection[int]) -> Verdict:
    """LEAD, LEASE or END for the members ``live`` of a view; at most one of several disjoint groups gets LEAD."""
    silent = [member for member in view.members if member not in live and member not in dead]
    if len(live) > len(silent) or (len(live) == len(silent) and view.leader in live):
        return Verdict.LEAD
    return Verdict.LEASE if len(live) == len(silent) else Verdict.END


def largest_group(hears: Mapping[int, frozenset[int]], leader: int) -> frozenset[int]:
    """The largest set of members that all hear each other; of equals one with ``leader``, then the lowest.

    Among more than `MOST_EXACT` it is sought by dropping, again and again, the member that fewest hear.
    """
    def mutual(one: int, other: int) -> bool:
        return other in hears[one] and one in hears[other]

    members = sorted(hears, key=lambda member: (member != leader, member))
    if all(mutual(*pair) for pair in combinations(members, 2)):
        return frozenset(members)
    if len(members) <= MOST_EXACT:
        for size in range(len(members), 0, -1):
            for group in combinations(members, size):
                if all(mutual(*pair) for pair in combinations(group, 2)):
                    return frozenset(group)
    while members:
        friends = {member: sum(mutual(member, other) for other in members if other != member) for member in members}
        if min(friends.values()) == len(members) - 1:
            break
        members.remove(min(reversed(members), key=lambda member: friends[member]))
    return frozenset(members)


def next_view(view: View, live: Collection[int], joining: int) -> View:
    """The view of those that are left, and of ``joining`` new members after them."""
    new = range(view.next_member, view.next_member + joining)
    return View(view.epoch + 1, (*sorted(live), *new), view.next_member + joining)


def most_advanced(positions: Mapping[int, Position]) -> int:
    """Whose state all take: the farthest member, the lowest of equals."""
    return min(positions, key=lambda member: (-positions[member].step, -positions[member].duties, member))


@dataclass(frozen=True)
class Knowledge:
    """What one member knows, and the rules by which it learns. Nothing here is changed in place."""

    me: int
    view: View
    lost: frozenset[int] = frozenset()
    """Members of the view that it does not hear any more."""
    dead: frozenset[int] = frozenset()
    """Of these, the ones whose process ended."""
    agreeing: bool = False
    """Whether the view is over for it."""
    position: Position | None = None
    fault: str = ""
    reports: Mapping[int, Report] = field(default_factory=dict)
    expelled: bool = False

    @property
    def report(self) -> Report:
        hears = frozenset(self.view.members) - self.lost
        return Report(self.view, hears | {self.me}, self.dead, self.position, self.fault)

    def lose(self, member: int, *, dead: bool) -> Knowledge:
        """A connection was closed (``dead``), or was silent for too long."""
        if member not in self.view.members or (member in self.lost and (member in self.dead or not dead)):
            return self
        reports = {other: report for other, report in self.reports.items() if other != member}
        return replace(self, lost=self.lost | {member}, dead=self.dead | ({member} if dead else set()),
                       reports=reports, agreeing=True)

    def stand(self, position: Position) -> Knowledge:
        """This member reached a step boundary and changes no state until the next view."""
        return replace(self, agreeing=True, position=position)

    def hear(self, sender: int, report: Report) -> Knowledge:
        """A report came in."""
        known = self
        if report.view.epoch >= self.view.epoch and self.me not in report.view.members:
            return replace(self, expelled=True, agreeing=True)
        if report.view.epoch > self.view.epoch:  # the next view was sent, and did not reach this member
            known = replace(self.enter(report.view), agreeing=True, position=self.position)
        if report.view.epoch < known.view.epoch or sender in known.lost or sender not in known.view.members:
            return known
        return replace(known, agreeing=True, reports={**known.reports, sender: report})

    def enter(self, view: View) -> Knowledge:
        """The next view was chosen. Losses of members that are still in it are kept; its reports begin anew."""
        if view.epoch <= self.view.epoch:
            return self
        if self.me not in view.members:
            return replace(self, expelled=True, agreeing=True)
        lost = self.lost & frozenset(view.members)
        return Knowledge(self.me, view, lost, self.dead & lost, agreeing=bool(lost))

    def may_enter(self, before: int) -> bool:
        """Whether this member stands in the view of epoch ``before``, from which another was chosen."""
        return self.view.epoch == before and self.agreeing and self.position is not None

    def pass_over(self, epoch: int) -> Knowledge:
        """The next view was chosen by a member that is lost: nobody may enter it any more, all report again."""
        return replace(self, view=replace(self.view, epoch=epoch), reports={})

    def decide(self) -> Decision:
        return decide(self.me, self.view, {**self.reports, self.me: self.report})
