"""How members agree on the next view: reports to all when a view is over, and its leader's word.

What the wire's thread hears goes into a `Knowledge`; what follows from that is decided by the thread of training, in
`regroup`.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from torch._C._distributed_c10d import Store

from distrib.elastic.arrival import ADDRESS, who_came
from distrib.elastic.membership import (
    NOTHING_YET,
    Decision,
    Knowledge,
    Position,
    Report,
    Verdict,
    View,
    most_advanced,
    next_view,
)
from distrib.elastic.wire import Peer, Place, Wire, Word
from distrib.elastic.words import Regrouped, report_as_word, report_of
from distrib.errors import WorldError

_BEATS = 5
"""In the time after which a silent member counts as lost."""
_PROBE_S = 1.0

Claim = Callable[[int, bool], tuple[int, bool]]
"""(epoch, whether the last leader can not be going on) -> (the lease's newest token, whether this member took it, as
the epoch). Waits for a sign of a leader that may be going on."""


class Members:
    """One member's link to all others. A context manager: leaving it closes the connections.

    ``alarm`` is set when the view is over and training must stop at the next step boundary.
    """

    def __init__(self, host: str, address: str, silence_s: float, start_s: float, most: int) -> None:
        """``most``: so many members there may be; who comes then waits until one is lost."""
        self._most = most
        self.alarm = threading.Event()
        self._silence_s, self._patience_s = silence_s, max(start_s, silence_s)
        self._changed = threading.Condition()
        self._wire = Wire(address, silence_s / _BEATS, self._changed, self._hear, self._gone, self._tick)
        self.place = Place(host, address, self._wire.port)
        self._known = Knowledge(-1, View(0, (-1,), 0))
        self._places: dict[int, Place] = {}
        self._missing: dict[int, tuple[float, float]] = {}
        """Members that are not connected: since when, and when they were last called."""
        self._next: tuple[Word, Any] | None = None
        """The next view, and the store for it that this member keeps, if it chose that view."""
        self._told: Report | None = None
        self._store: Any = None
        """For the present view, if this member keeps it."""

    # What the thread of training calls.

    def meet(self, me: int, size: int, epoch: int, store: Store, tell: Callable[[str], None]) -> None:
        """Get to know the other members of a run's first view. Collective. Raises RuntimeError, WorldError.

        Who does not come for ``start_s``, or ends meanwhile, is lost to the view, and the alarm is set.
        """
        if me == 0:
            store.set("members/secret", secrets.token_hex(16))
        store.set(ADDRESS.format(me), json.dumps(vars(self.place)))
        came = who_came(me, size, self._patience_s, store, tell)
        if me not in came:
            raise WorldError(f"rank {me} came later than {self._patience_s:g} s after rank 0, and the others began "
                             "without it", "it was ended", "have it join: `distrib train --run DIR --join`")
        self._wire.secret = store.get("members/secret").decode()
        self._places = {other: Place(**json.loads(store.get(ADDRESS.format(other)))) for other in came}
        self._known = Knowledge(me, View(epoch, tuple(range(size)), size))
        self._wire.start()
        for other in range(size):
            if other not in came:  # nobody lets it in any more
                self._lose(other, dead=True)
            elif other < me:
                try:
                    self._wire.open(self._places[other], other, me, self.place)
                except OSError as error:
                    self._lose(other, dead=isinstance(error, ConnectionRefusedError))
        self._wait_for_connections()

    def _wait_for_connections(self) -> None:
        """Until every member that lives is connected, or one is lost."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_complete() or self.alarm.is_set())

    def _lose(self, member: int, *, dead: bool) -> None:
        with self._changed:
            self._learn(self._known.lose(member, dead=dead))

    def join(self, places: Mapping[int, Place], secret: str) -> None:
        """Ask the members of a run to be taken in; `regroup` then waits for that. Raises WorldError."""
        self._wire.secret = secret
        for place in places.values():
            with contextlib.suppress(OSError):
                self._wire.open(place, None, -1, self.place)
        if not self._wire.peers:
            raise WorldError("none of the run's members can be reached", "this rank did not join",
                             "check that the run is still training, and that its hosts can be reached")
        self._known = Knowledge(-1, View(-1, (-1,), 0), agreeing=True, position=NOTHING_YET)
        self._wire.start()

    def expect_beats(self) -> None:
        """From now on a member counts as lost after ``silence_s``, not only after ``start_s``: who still loads
        libraries may be silent for long."""
        self._patience_s = self._silence_s

    @property
    def me(self) -> int:
        return self._known.me

    @property
    def secret(self) -> str:
        """What joining members must know."""
        return self._wire.secret

    @property
    def places(self) -> Mapping[int, Place]:
        return self._places

    @property
    def someone_waits(self) -> bool:
        """Whether somebody asks to join: the leader then ends the view at the next step boundary."""
        return len(self._known.view.members) < self._most and any(peer.is_joining for peer in self._wire.peers)

    def check(self) -> None:
        """Raise ViewEndedError if the view is over."""
        if self.alarm.is_set():
            raise ViewEndedError("the membership changed", "the step is done again by those that are left")

    def regroup(self, position: Position, claim: Claim, limit_s: float) -> Regrouped:
        """Agree with the others on the next view, and enter it. ``position`` is where this member stands.

        A member that stays away for ``limit_s`` counts as lost. Raises WorldError if this member may not go on, or if
        the run ends by another's ``fault``.
        """
        deadline = time.monotonic() + limit_s
        with self._changed:
            self._known = self._known.stand(position)
            self._tell()
        while True:
            with self._changed:
                self._changed.wait_for(self._is_due, 0.05)
                if self._next is not None:
                    return self._enter(*self._next)
                self._refuse()
                decision = self._known.decide() if self.me >= 0 else Decision(Verdict.WAIT)
                if time.monotonic() > deadline:
                    self._give_up_waiting()
                    deadline = time.monotonic() + limit_s
            if decision.verdict in (Verdict.LEAD, Verdict.LEASE):
                self._lead(decision, claim)
            elif decision.verdict is Verdict.END:
                raise _cut_off(self._known)

    def tell_fault(self, fault: str) -> None:
        """Have all others end with this error."""
        with self._changed:
            self._known = replace(self._known, agreeing=True, fault=fault)
            self._tell()
        self._wire.drain(1.0)

    def finish(self) -> None:
        """The run is over: wait until all others say so too, that nobody takes the first to go for lost."""
        with self._changed:
            for peer in self._wire.peers:
                self._wire.send(peer, {"finished": True})
            self._wire.poke()
            self._changed.wait_for(lambda: all(peer.finished for peer in self._wire.peers if peer.member is not None),
                                   self._silence_s)

    def close(self) -> None:
        """Leave."""
        self._wire.close(self._silence_s)
        self._store = None

    def __enter__(self) -> Members:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _is_due(self) -> bool:
        return self._next is not None or self._known.expelled or self._known.decide().verdict is not Verdict.WAIT \
            if self.me >= 0 else self._next is not None

    def _is_complete(self) -> bool:
        return not self._unconnected()

    def _unconnected(self) -> set[int]:
        return set(self._known.report.hears) - {peer.member for peer in self._wire.peers} - {self.me}

    def _refuse(self) -> None:
        if self._known.expelled:
            raise _cut_off(self._known)
        for report in self._known.reports.values():
            if report.fault:
                raise WorldError(report.fault, "all ranks were ended")
        if self.me < 0 and not self._wire.peers:
            raise WorldError("the run ended before this rank could join", "this rank did not join")

    def _give_up_waiting(self) -> None:
        """Those that have not reached a step boundary in all the time hang in something."""
        for member in self._known.view.members:
            report = self._known.reports.get(member)
            if member != self.me and (report is None or report.position is None):
                self._known = self._known.lose(member, dead=False)
        self._tell()

    def _lead(self, decision: Decision, claim: Claim) -> None:
        known = self._known
        epoch = known.view.epoch + 1
        is_over = decision.verdict is Verdict.LEAD or known.view.leader in known.dead
        token, is_ours = claim(epoch, is_over)
        if not is_ours:  # by somebody who was lost before the others entered, or who goes on without this member
            with self._changed:
                if self._known is known and self._next is None:
                    self._known = known.pass_over(token)
                    self._tell()
            return
        from torch._C._distributed_c10d import TCPStore

        store = TCPStore(self.place.address, 0, None, is_master=True, wait_for_workers=False)
        with self._changed:
            if self._known.decide() != decision:  # somebody was lost meanwhile; the lease is kept for the next try
                self._known = self._known.pass_over(epoch)
                self._tell()
                return
            room = max(0, self._most - len(decision.live))
            joining = [peer for peer in self._wire.peers if peer.is_joining][:room]
            view = next_view(known.view, decision.live, len(joining))
            new = dict(zip(range(known.view.next_member, view.next_member), joining, strict=True))
            reports = {**known.reports, known.me: known.report}
            positions = {member: reports[member].position or NOTHING_YET for member in decision.live}
            places = {member: self._places[member] for member in decision.live}
            for member, peer in new.items():
                assert peer.place is not None
                places[member], positions[member] = peer.place, NOTHING_YET
            lost = tuple(member for member in known.view.members if member not in decision.live)
            entered = Regrouped(view, places, positions, most_advanced(positions), lost,
                                (self.place.address, store.port))
            message = {"before": known.view.epoch, **entered.as_word()}
            for peer in self._wire.peers:
                number = next((member for member, other in new.items() if other is peer), peer.member)
                if number in view.members:
                    self._wire.send(peer, {"next": message, "you": number})
            self._next = {"next": message, "you": known.me}, store
        self._wire.poke()

    def _enter(self, word: Word, store: Any) -> Regrouped:
        entered = Regrouped.of(word["next"])
        view = entered.view
        self._next = self._told = None
        self._store = store
        self._places = dict(entered.places)
        if self.me < 0:
            self._known = Knowledge(int(word["you"]), View(view.epoch - 1, view.members, view.next_member))
        self._known = self._known.enter(view)
        for peer in self._wire.peers:  # who joined has a number now
            if peer.member is None and peer.place in self._places.values():
                peer.member, peer.is_joining = _number_of(peer.place, self._places), False
        for member in view.members:  # those that joined together do not know each other yet
            if member < self.me and all(peer.member != member for peer in self._wire.peers):
                with contextlib.suppress(OSError):
                    self._wire.open(self._places[member], member, self.me, self.place)
        self._sync_alarm()
        self._wire.poke()
        return entered

    # What the wire's thread calls, with `_changed` held.

    def _tick(self, now: float) -> None:
        for peer in self._wire.peers:
            if peer.member is not None and now - peer.heard_at > self._patience_s:
                self._learn(self._known.lose(peer.member, dead=False))
        missing = self._unconnected() & self._places.keys() if self.me >= 0 else set()
        self._missing = {member: self._missing.get(member, (now, now)) for member in missing}
        for member, (since, asked) in list(self._missing.items()):
            if now - since > self._patience_s:
                self._learn(self._known.lose(member, dead=False))
            elif now - asked > _PROBE_S:
                self._missing[member] = since, now
                threading.Thread(target=self._call, args=(member, self._places[member]), daemon=True).start()

    def _call(self, member: int, place: Place) -> None:
        """Whoever ended before it was connected closes no connection: its port tells."""
        try:
            socket.create_connection((place.address, place.port), _PROBE_S).close()
        except ConnectionRefusedError:
            if self._places.get(member) == place:
                self._lose(member, dead=True)
        except OSError:
            return

    def _hear(self, peer: Peer, word: Word) -> None:
        if "secret" in word:
            peer.place = Place(**word["place"])
            peer.is_joining = word["member"] < 0
            if not peer.is_joining:
                peer.member = int(word["member"])
                if self._told is not None:  # before it called
                    self._wire.send(peer, {"report": report_as_word(self._told)})
            self._changed.notify_all()
        elif "next" in word:
            if self.me < 0 or self._known.may_enter(int(word["next"]["before"])):
                self._next = word, None
                self._changed.notify_all()
            else:
                self._answer(peer)
        elif "finished" in word:
            peer.finished = True
            self._changed.notify_all()
        elif "report" in word and peer.member is not None:
            self._answer(peer)
            self._learn(self._known.hear(peer.member, report_of(word["report"])))

    def _answer(self, peer: Peer) -> None:
        """Let one that is not in this view any more know."""
        if peer.member is not None and self.me >= 0 and peer.member not in self._known.view.members:
            self._wire.send(peer, {"report": report_as_word(self._known.report)})

    def _gone(self, peer: Peer) -> None:
        if peer.member is not None and not peer.finished:
            self._learn(self._known.lose(peer.member, dead=True))
        self._changed.notify_all()

    def _learn(self, known: Knowledge) -> None:
        if known is self._known:
            return
        self._known = known
        self._sync_alarm()
        if known.agreeing:
            self._tell()
        self._changed.notify_all()

    def _sync_alarm(self) -> None:
        if self._known.agreeing:
            self.alarm.set()
            self._store = None  # it closes, which wakes whoever waits for it
        else:
            self.alarm.clear()

    def _tell(self) -> None:
        """Send this member's report to all that it hears, if there is something new in it."""
        self._sync_alarm()
        report = self._known.report
        if report == self._told or self.me < 0:
            return
        self._told = report
        for peer in self._wire.peers:
            if peer.member in report.hears:
                self._wire.send(peer, {"report": report_as_word(report)})
        self._wire.poke()


class ViewEndedError(WorldError):
    """The membership changed in the middle of something collective."""


def _number_of(place: Place | None, places: Mapping[int, Place]) -> int:
    return next(member for member, other in places.items() if other == place)


def _cut_off(known: Knowledge) -> WorldError:
    heard = len(known.view.members) - len(known.lost)
    fact = f"this rank hears {heard} of {len(known.view.members)} ranks, itself included, and those it does not hear " \
        "may go on" if known.lost else "the others go on without this rank, of which they heard nothing for too long"
    return WorldError(fact, "it was ended so that no two models are trained from one run",
                      "look at the network between the hosts; start again to go on from the newest checkpoint")

