"""Members that end before they are connected, and stores whose keeper ends: nobody waits for them."""

from __future__ import annotations

import datetime
import json
import socket
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch._C._distributed_c10d import HashStore

from distrib.comm.meeting import reach_store
from distrib.config import CommConfig
from distrib.elastic.lease import Lease
from distrib.elastic.link import Link
from distrib.elastic.members import Members, ViewEndedError
from distrib.elastic.membership import NOTHING_YET, Position
from distrib.elastic.words import Regrouped
from distrib.errors import CheckpointError, WorldError
from distrib.rundir import RunDir
from distrib.world import World

LONG_S = 600.0


def closed_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def quiet(_: str) -> None:
    """Says nothing."""


def place(port: int) -> str:
    return json.dumps({"host": "far", "address": "127.0.0.1", "port": port})


def test_who_told_where_it_is_and_ended_before_it_called_is_known_to_be_dead() -> None:
    store = HashStore()
    store.set("members/1", place(closed_port()))
    with Members("near", "127.0.0.1", LONG_S / 20, LONG_S, 8) as members:
        members.meet(0, 2, 0, store, quiet)
        assert members.alarm.is_set()
        assert members._known.dead == {1}


def test_who_never_came_is_not_waited_for_beyond_the_time() -> None:
    said: list[str] = []
    with Members("near", "127.0.0.1", 1.0, 1.0, 8) as members:
        members.meet(0, 3, 0, HashStore(), said.append)
        assert members._known.dead == {1, 2}
        with pytest.raises(ViewEndedError):
            members.check()


def test_who_comes_later_is_told_so() -> None:
    store = HashStore()
    store.set("members/came", "[0]")
    with Members("near", "127.0.0.1", 1.0, 1.0, 8) as members, \
            pytest.raises(WorldError, match="rank 1 came later than 1 s after rank 0"):
        members.meet(1, 2, 0, store, quiet)


def test_rank_0_says_whom_it_waits_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distrib.elastic.arrival.NOTICE_S", 0.1)
    said: list[str] = []
    store = HashStore()
    store.set("members/1", place(closed_port()))
    with Members("near", "127.0.0.1", 1.0, 1.0, 8) as members:
        members.meet(0, 4, 0, store, said.append)
    [line] = said
    assert line.startswith("waiting for rank 2, 3, which did not come yet; after 1 s")


@pytest.mark.parametrize("stale", [True, False])
def test_who_stands_in_for_a_rank_that_was_lost_early_waits_until_the_others_have_met(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stale: bool) -> None:
    run, comm = RunDir(tmp_path), CommConfig(backend="gloo", timeout_s=30.0)
    document = {"members": {"0": json.loads(place(closed_port()))}, "secret": "x", "backend": "gloo"}
    if stale:
        run.members.write_text(json.dumps(document))
    with Members("near", "127.0.0.1", LONG_S, LONG_S, 8) as other:
        other.meet(0, 1, 0, HashStore(), quiet)
        document |= {"members": {"0": vars(other.place)}, "secret": other.secret}
        timer = threading.Timer(0.7, lambda: run.members.write_text(json.dumps(document)))
        timer.start()
        link = Link(World(host="near", elastic=True, join=True), comm, run, Lease(run, "near", 1.0), quiet, 8)
        begun: list[Position] = []
        monkeypatch.setattr(link, "regroup", begun.append)
        link.join()
        assert begun == [NOTHING_YET]
        assert link.members is not None
        link.members.close()
        with pytest.raises((CheckpointError, WorldError)):  # by hand it is no use to wait
            Link(World(host="near"), comm, RunDir(tmp_path / "none"), Lease(run, "near", 1.0), quiet, 8).join()
        timer.join()


def test_a_list_of_members_that_can_not_be_written_is_told_and_ends_nothing(tmp_path: Path) -> None:
    run, said = RunDir(tmp_path / "gone"), list[str]()
    link = Link(World(host="near", elastic=True), CommConfig(), run, Lease(run, "near", 1.0), said.append, 8)
    with Members("near", "127.0.0.1", 1.0, 1.0, 8) as members:
        members.meet(0, 1, 0, HashStore(), quiet)
        link.members = members
        link._publish_if_possible()
    assert "members.json could not be written" in said[0]
    assert "No rank can join the run" in said[0]


def test_the_next_view_keeps_its_store_whatever_is_still_heard_in_the_last() -> None:
    class Interrupted(Members):
        def _enter(self, *what: Any) -> Regrouped:
            self._learn(replace(self._known))  # as when a report comes once more
            return super()._enter(*what)

    store = HashStore()
    store.set("members/1", place(closed_port()))
    with Interrupted("near", "127.0.0.1", LONG_S / 20, LONG_S, 8) as members:
        members.meet(0, 2, 0, store, quiet)
        entered = members.regroup(Position(3), lambda epoch, _: (epoch, True), LONG_S)
        assert entered.view.members == (0,)
        socket.create_connection(entered.store, 1.0).close()
        members._lose(0, dead=False)  # the view is over: who waits for its store wakes
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(entered.store, 1.0)


def test_a_store_whose_keeper_died_is_waited_for_no_longer_than_the_view_lasts() -> None:
    begun = time.monotonic()

    def check() -> None:
        if time.monotonic() > begun + 0.3:
            raise ViewEndedError("the membership changed")

    with pytest.raises(ViewEndedError):
        reach_store("127.0.0.1", closed_port(), datetime.timedelta(seconds=LONG_S), check)
