"""The rules of membership, tried exhaustively: whatever is lost and however the network is cut, one group goes on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import combinations, product

import pytest

from distrib.elastic.membership import (
    NOTHING_YET,
    Knowledge,
    Position,
    Report,
    Verdict,
    View,
    decide,
    largest_group,
    may_go_on,
    most_advanced,
    next_view,
)


def view(size: int) -> View:
    return View(3, tuple(range(size)), size)


def parts(members: tuple[int, ...], count: int) -> Iterator[list[list[int]]]:
    """All ways to put members into ``count`` parts, the last one for the dead."""
    for places in product(range(count), repeat=len(members)):
        yield [[m for m, p in zip(members, places, strict=True) if p == part] for part in range(count)]


@pytest.mark.parametrize("size", range(1, 7))
def test_of_all_cuts_and_deaths_at_most_one_part_goes_on(size: int) -> None:
    for *halves, dead in parts(tuple(range(size)), 4):
        # What a part knows of the dead differs: it may take any of them for silent.
        verdicts = [{may_go_on(view(size), half, known) for number in range(len(dead) + 1)
                     for known in combinations(dead, number)} for half in halves if half]
        certain = [part for part in verdicts if Verdict.LEAD in part]
        assert len(certain) <= 1
        if certain:  # whoever wants the lease then does not get it: the token is taken first by one of them
            assert all(Verdict.LEAD not in part for part in verdicts if part is not certain[0])


@pytest.mark.parametrize("size", range(2, 7))
def test_after_deaths_alone_the_rest_always_goes_on(size: int) -> None:
    for number in range(1, size):
        for dead in combinations(range(size), number):
            live = [member for member in range(size) if member not in dead]
            assert may_go_on(view(size), live, dead) is Verdict.LEAD


def test_a_tie_goes_to_the_leader_and_without_one_to_the_lease() -> None:
    assert may_go_on(view(4), (0, 1), ()) is Verdict.LEAD
    assert may_go_on(view(4), (2, 3), ()) is Verdict.LEASE
    assert may_go_on(view(5), (1, 2), (0,)) is Verdict.LEASE
    assert may_go_on(view(5), (1, 2), ()) is Verdict.END


def symmetric(size: int) -> Iterator[dict[int, frozenset[int]]]:
    pairs = list(combinations(range(size), 2))
    for up in product((False, True), repeat=len(pairs)):
        links = {pair for pair, works in zip(pairs, up, strict=True) if works}
        yield {a: frozenset({a} | {b for b in range(size) if (min(a, b), max(a, b)) in links}) for a in range(size)}


@pytest.mark.parametrize("size", range(1, 6))
def test_of_all_networks_the_largest_group_hears_each_other(size: int) -> None:
    for hears in symmetric(size):
        group = largest_group(hears, 0)
        assert all(b in hears[a] for a in group for b in group)
        for larger in combinations(range(size), len(group) + 1):
            assert not all(b in hears[a] for a in larger for b in larger)


@pytest.mark.parametrize("size", range(2, 6))
def test_of_all_networks_at_most_one_leader_is_certain_of_each_member(size: int) -> None:
    """Two may try to lead if links fail one by one; no member is in both views without the lease deciding."""
    for hears in symmetric(size):
        reports = {m: Report(view(size), hears[m], frozenset(), Position(5)) for m in range(size)}
        led = {}
        for member in range(size):
            known = {other: reports[other] for other in hears[member]}
            decision = decide(member, view(size), known)
            if decision.verdict is Verdict.LEAD:
                led[member] = set(decision.live)
                assert all(other in hears[member] for other in decision.live)
        for one, other in combinations(led.values(), 2):
            assert one & other, "two views without a common member could both be entered"


def test_many_members_are_grouped_too() -> None:
    everyone = frozenset(range(40))
    hears = {m: everyone - {7} if m != 7 else frozenset({7}) for m in everyone}
    assert largest_group(hears, 0) == everyone - {7}


class Network:
    """Members that pass reports to each other by hand; what is sent is delivered at once, but to the dead."""

    def __init__(self, size: int) -> None:
        self.known: dict[int, Knowledge] = {m: Knowledge(m, view(size)) for m in range(size)}

    def kill(self, *dead: int) -> None:
        for victim in dead:
            del self.known[victim]
        for member in self.known:
            for victim in dead:
                self.known[member] = self.known[member].lose(victim, dead=True)

    def report(self, member: int, position: Position) -> None:
        self.known[member] = self.known[member].stand(position)
        for other in self.known:
            if other != member:
                self.known[other] = self.known[other].hear(member, self.known[member].report)

    def leaders(self) -> Mapping[int, tuple[int, ...]]:
        decisions = {member: known.decide() for member, known in self.known.items()}
        return {member: d.live for member, d in decisions.items() if d.verdict is Verdict.LEAD}

    def enter(self, new: View, only: tuple[int, ...] = ()) -> None:
        for member in only or tuple(self.known):
            self.known[member] = self.known[member].enter(new)


@pytest.mark.parametrize("dead", [(0,), (2,), (0, 1), (1, 3)])
def test_after_a_death_the_lowest_leads_when_all_stand(dead: tuple[int, ...]) -> None:
    network = Network(4)
    network.kill(*dead)
    left = sorted(network.known)
    for member in left:
        assert not network.leaders()
        network.report(member, Position(9))
    assert network.leaders() == {left[0]: tuple(left)}


def test_a_leader_that_dies_before_it_told_is_one_more_loss() -> None:
    network = Network(4)
    network.kill(3)
    for member in (0, 1, 2):
        network.report(member, Position(9))
    network.kill(0)
    assert network.leaders() == {1: (1, 2)}  # where 2 stands is known: it stands there until the next view
    for member in (1, 2):  # had the dead one taken the lease before
        network.known[member] = network.known[member].pass_over(4)
    assert not network.leaders()
    for member in (1, 2):
        network.report(member, Position(9))
    assert network.leaders() == {1: (1, 2)}
    assert all(known.may_enter(4) and not known.may_enter(3) for known in network.known.values())


def test_who_trains_on_enters_no_view_that_was_chosen_without_it() -> None:
    network = Network(3)
    network.report(0, Position(9))
    assert network.known[0].may_enter(3)
    assert not network.known[1].may_enter(3)  # agreeing, but not at a step boundary yet
    assert not Knowledge(0, view(3)).may_enter(3)


def test_who_missed_the_next_view_catches_up() -> None:
    network = Network(4)
    network.kill(3)
    for member in (0, 1, 2):
        network.report(member, Position(9))
    network.enter(next_view(view(4), (0, 1, 2), 0), only=(0, 1))
    network.kill(0)  # before it told 2
    network.report(1, Position(9))
    assert network.known[2].view.epoch == 4
    network.report(2, Position(9))
    network.report(1, Position(9))
    assert network.leaders() == {1: (1, 2)}


def test_who_was_taken_for_lost_learns_that_it_is_out() -> None:
    known = Knowledge(2, view(3)).hear(0, Report(View(4, (0, 1), 3), frozenset({0, 1}), frozenset(), None))
    assert known.expelled
    assert Knowledge(2, view(3)).enter(View(4, (0, 1), 3)).expelled


def test_reports_of_old_views_and_of_the_lost_are_not_heard() -> None:
    known = Knowledge(0, view(3)).lose(2, dead=False)
    old = Report(replace(view(3), epoch=2), frozenset({1}), frozenset(), Position(1))
    assert known.hear(1, old) is known
    assert known.hear(2, replace(old, view=view(3))) is known


def test_one_that_stands_nowhere_yet_is_waited_for() -> None:
    network = Network(3)
    network.report(0, Position(4))
    network.report(1, Position(4))
    assert not network.leaders()
    assert network.known[0].decide().verdict is Verdict.WAIT


def test_all_take_the_state_of_the_farthest() -> None:
    assert most_advanced({0: Position(4, 1), 1: Position(5), 2: Position(5, 1), 3: NOTHING_YET}) == 2
    assert most_advanced({2: Position(5), 1: Position(5)}) == 1


def test_new_members_get_numbers_that_nobody_had() -> None:
    after = next_view(view(3), (0, 2), 2)
    assert after == View(4, (0, 2, 3, 4), 5)
    assert next_view(after, (0, 4), 1).members == (0, 4, 5)
