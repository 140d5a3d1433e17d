"""A rank's link to an elastic run: the group of the present view, and the next one when that is over."""

from __future__ import annotations

import datetime
import json
import os
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from types import TracebackType
from typing import Any

from torch._C._distributed_c10d import PrefixStore

from distrib.comm.group import Group, Meeting, no_meeting
from distrib.comm.meeting import open_store, reach_store
from distrib.comm.oneccl import own_address
from distrib.config import CommConfig
from distrib.elastic.lease import Lease
from distrib.elastic.members import Members
from distrib.elastic.membership import NOTHING_YET, Position
from distrib.elastic.wire import Place
from distrib.elastic.words import Regrouped
from distrib.errors import CheckpointError, StorageError, WorldError, counted, storage_errors
from distrib.rundir import RunDir
from distrib.world import World

MOST_TRIES = 20
"""New views in a row without a step in between; then the run ends."""
ALARM_S = 2.0
"""So soon after a loss broke something it is heard of."""
JOIN_AGAIN_S = 0.5


class Link:
    """One rank's place in an elastic run. A context manager; leaving it in order waits for the others to end too.

    ``lease`` is the run's; rank 0 holds it from the start, others take it when they lead.
    """

    def __init__(self, world: World, comm: CommConfig, run: RunDir, lease: Lease, tell: Callable[[str], None],
                 most: int) -> None:
        """``most``: see `Members`."""
        self._most = most
        self._comm, self._run, self._lease, self._tell = comm, run, lease, tell
        self._timeout = datetime.timedelta(seconds=comm.timeout_s)
        self._world = world
        self._backend: str = comm.backend
        self._tries, self._position, self._leaves = 0, NOTHING_YET, False
        self.last: Regrouped | None = None
        """How the present view came about; None: it is the first."""
        self.members: Members | None = None
        self.changes: list[dict[str, Any]] = []
        """Of the leader: what became of the members since it was read last, for the log: ranks, lost, joined."""

    def meet(self) -> Group:
        """The first view, or the next one if somebody is lost or does not come. Collective. Raises WorldError."""
        world = self._world
        self.members = Members(world.host, own_address(world.master_addr), self._comm.silence_s,
                               self._comm.timeout_s, self._most)
        try:
            with no_meeting(world):
                store = open_store(world, self._timeout)
                if world.is_first:
                    store.set("epoch", str(self._lease.token))
                self.members.meet(world.rank, world.size, int(store.get("epoch")), store, self._tell)
        except RuntimeError as error:
            whom = "the ranks did not meet" if world.is_first else \
                f"rank 0 at {world.master_addr}, port {world.master_port}, was lost or never came"
            raise WorldError(f"rank {world.rank} on {world.host}: {whom} ({str(error).splitlines()[0]})",
                             "nothing was started", "see the other ranks' own messages") from error
        try:
            self.members.check()
            group = self._group(store)
        except WorldError:
            if not self.members.alarm.wait(ALARM_S):
                raise
            return self.regroup(NOTHING_YET)
        self._publish()  # if not done with the choice
        return group

    def join(self) -> Group:
        """Be taken into a run that is on its way. Raises CheckpointError or WorldError.

        In the place of a rank that a launcher lost, wait until it is: the others may not have met yet.
        """
        deadline = time.monotonic() + (2 * self._comm.timeout_s if self._world.join else 0.0)
        while True:
            try:
                self._ask_to_join()
                break
            except (CheckpointError, WorldError):
                if self.members is not None:
                    self.members.close()
                    self.members = None
                if time.monotonic() > deadline:
                    raise
            time.sleep(JOIN_AGAIN_S)
        return self.regroup(NOTHING_YET)

    def _ask_to_join(self) -> None:
        try:
            document = json.loads(self._run.members.read_bytes())
            places = {int(member): Place(**place) for member, place in document["members"].items()}
            secret, self._backend = str(document["secret"]), str(document["backend"])
        except FileNotFoundError:
            raise CheckpointError(f"{self._run.root} is not trained elastically: {self._run.members.name} is missing",
                                  "this rank did not join",
                                  "leave --join out to train it, or start it with `launch run --elastic` for ranks to "
                                  "join") from None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{self._run.members} can not be read: {error}", "this rank did not join",
                                  "name the --run folder of an elastic run that is training") from error
        first = next(iter(places.values()), None)
        if first is None:
            raise WorldError("the run has no members", "this rank did not join")
        self.members = Members(self._world.host, own_address(first.address), self._comm.silence_s,
                               self._comm.timeout_s, self._most)
        self.members.join(places, secret)
        if len(places) >= self._most:
            self._tell(f"{counted(len(places), 'rank')} for train.lanes = {self._most}: this one waits until one of "
                       "them is lost")

    def regroup(self, position: Position) -> Group:
        """The next view's group, with those that are left; this member stands at ``position``. Raises WorldError."""
        assert self.members is not None
        while True:
            self._tries = self._tries + 1 if position <= self._position else 0
            self._position = max(position, self._position)
            if self._tries > MOST_TRIES:
                raise WorldError(f"the ranks came together {MOST_TRIES} times without getting a step further",
                                 "the run was ended", "look at the network and at the ranks' own messages")
            before = self.members.places
            self.last = self.members.regroup(position, self._claim, self._comm.timeout_s)
            self._world = self._world_of(self.last)
            self._tell_changes(self.last, before)
            try:
                self._publish_if_possible()
                address, port = self.last.store
                store = reach_store(address, port, self._timeout, self.members.check)
                group = self._group(PrefixStore(f"view/{self.last.view.epoch}", store))
            except (RuntimeError, WorldError):
                if not self.members.alarm.is_set():
                    time.sleep(0.05)  # the loss that broke it will be heard of
                continue
            return group

    @property
    def is_leader(self) -> bool:
        return self._world.is_first

    @property
    def has_new_members(self) -> bool:
        return self.last is not None and NOTHING_YET in self.last.positions.values()

    @property
    def someone_waits(self) -> bool:
        """Whether the view should end at the next step boundary, for somebody who wants to join."""
        return self.is_leader and self.members is not None and self.members.someone_waits

    def step_done(self) -> None:
        """Training is on its way: from now on every rank is heard of all the time."""
        if self.members is not None:
            self.members.expect_beats()

    def tell_fault(self, fault: str) -> None:
        """End the whole run: what this rank met would come to whoever takes its lanes."""
        if self.members is not None:
            self.members.tell_fault(f"rank {self._world.rank} on {self._world.host}: {fault}")

    def leave(self) -> None:
        """This rank alone ends; the others go on as soon as its connections are closed."""
        self._leaves = True

    def __enter__(self) -> Link:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        if self.members is not None:
            if kind is None and not self._leaves:
                self.members.finish()
            self.members.close()

    def _group(self, store: object) -> Group:
        assert self.members is not None
        group = Group(self._world, self._backend, self._comm.timeout_s, Meeting(store, self.members.check))
        if self._backend != group.backend:
            self._backend = group.backend  # chosen once, for who joins too
            self._publish_if_possible()
        return group

    def _claim(self, epoch: int, is_over: bool) -> tuple[int, bool]:
        """See `distrib.elastic.members.Claim`."""
        if self._lease.token < 0 and self._lease.newest()[0] < 0:
            raise WorldError(f"{self._world.host} does not see the run folder {self._run.root}, and the rank that "
                             "wrote it is lost", "this rank was ended; the run's checkpoints are whole",
                             "keep the run folder on storage that all hosts share")
        if not is_over and not self._lease.is_unchanged():
            raise WorldError("the rank that leads the run goes on, and this one does not hear it",
                             "it was ended so that no two models are trained from one run",
                             "look at the network between the hosts")
        try:
            is_ours = self._lease.claim(epoch)
        except StorageError as error:  # here; other hosts may reach the folder yet
            raise WorldError(error.fact, "this rank, which was to lead the run, was ended", error.remedy) from error
        return self._lease.newest()[0], is_ours

    def _publish_if_possible(self) -> None:
        """Without the document nobody can join, but those that are there go on."""
        try:
            self._publish()
        except StorageError as error:
            self._tell(f"warning: {error.one_line()}")

    def _publish(self) -> None:
        """Where others can join, and over which backend; the leader alone writes it."""
        assert self.members is not None
        if not self.is_leader:
            return
        document = {"members": {member: vars(place) for member, place in self.members.places.items()},
                    "secret": self.members.secret, "backend": self._backend}
        with storage_errors(f"{self._run.members} could not be written", "no rank can join the run"):
            temporary = self._run.members.with_name(f".{self._run.members.name}.{os.getpid()}")
            fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(fd, "w") as file:
                json.dump(document, file)
            os.replace(temporary, self._run.members)

    def _world_of(self, regrouped: Regrouped) -> World:
        assert self.members is not None
        members, me = regrouped.view.members, self.members.me
        here = [member for member in members if regrouped.places[member].host == self._world.host]
        return replace(self._world, rank=members.index(me), size=len(members), local_rank=here.index(me),
                       local_size=len(here), master_addr=regrouped.store[0], master_port=regrouped.store[1],
                       store_is_hosted=False)

    def _tell_changes(self, regrouped: Regrouped, before: Mapping[int, Place]) -> None:
        """``before``: where members were in the last view."""
        if not self.is_leader:
            return
        size, step = len(regrouped.view.members), max(regrouped.positions.values()).step
        new = [member for member, position in regrouped.positions.items() if position == NOTHING_YET]
        self.changes.append({
            "ranks": size,
            "lost": [{"number": one, "host": before[one].host if one in before else None} for one in regrouped.lost],
            "joined": [{"number": one, "host": regrouped.places[one].host} for one in new],
        })
        if regrouped.lost:
            self._tell(f"lost: {_named(regrouped.lost, before)}; {counted(size, 'rank goes', 'ranks go')} "
                       + (f"on from step {step}" if step >= 0 else "on"))
        if new and len(new) < size:
            self._tell(f"joined: {_named(new, regrouped.places)}; now {counted(size, 'rank')}")


def _named(members: Collection[int], places: Mapping[int, Place]) -> str:
    """How many, and each one's number and host; who never came has none."""
    each = (f"{member} on {places[member].host}" if member in places else str(member) for member in members)
    return f"{counted(len(members), 'rank')} (number {', '.join(each)})"
