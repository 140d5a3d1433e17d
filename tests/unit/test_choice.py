from __future__ import annotations

import threading

import pytest
from torch._C._distributed_c10d import HashStore

from distrib.comm import choice, oneccl
from distrib.comm.choice import Choice, choose_alone, choose_together
from distrib.comm.group import Group
from distrib.world import World


def of_all(size: int) -> list[Choice]:
    store = HashStore()
    chosen: dict[int, Choice] = {}

    def rank(number: int) -> None:
        chosen[number] = choose_together(World(number, size, host=f"host{number}"), store)

    threads = [threading.Thread(target=rank, args=(number,)) for number in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return [chosen[number] for number in range(size)]


def test_oneccl_where_every_rank_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oneccl, "missing", lambda: None)
    choices = of_all(3)
    assert {one.backend for one in choices} == {"oneccl"}


def test_gloo_on_all_ranks_if_one_lacks_it_and_the_log_says_which(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> str | None:
        return "it is not built; build it" if threading.current_thread().name == "odd" else None

    monkeypatch.setattr(oneccl, "missing", missing)
    store = HashStore()
    chosen: list[Choice] = []
    odd = threading.Thread(name="odd", target=lambda: chosen.append(
        choose_together(World(1, 2, host="node2"), store)))
    odd.start()
    chosen.append(choose_together(World(0, 2, host="node1"), store))
    odd.join(30)
    assert chosen[0] == chosen[1]
    assert chosen[0].backend == "gloo"
    assert "rank 1 on node2: it is not built; build it" in chosen[0].why


def test_what_needs_no_word_from_others() -> None:
    assert choose_alone(World()) == Choice("gloo", "a single rank sends nothing")
    under_horovod = choose_alone(World(0, 2, master_addr="", launcher="horovodrun"))
    assert under_horovod is not None
    assert under_horovod.backend == "horovod"
    assert choose_alone(World(0, 2)) is None
    assert choice.choose_alone(World(0, 2, master_addr="", launcher="Open MPI")) is None


def test_the_group_tells_its_choice() -> None:
    with Group(World()) as group:
        assert group.backend == "gloo"
        assert group.choice.why == "a single rank sends nothing"
    with Group(World(), "gloo") as group:
        assert group.choice.why == "as asked for"


def test_ranks_that_share_cores_do_not_poll(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oneccl, "missing", lambda: None)
    chosen = choose_together(World(0, 1, local_size=100_000), HashStore())
    assert chosen.backend == "gloo"
    assert "100000 ranks share" in chosen.why
