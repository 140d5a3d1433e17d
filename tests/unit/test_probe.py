"""The probe's parts that need no other node."""

from __future__ import annotations

import threading
import time
from itertools import combinations
from pathlib import Path

import pytest

from distrib.probe import links
from distrib.probe.folder import ProbeFolder
from distrib.probe.run import better, doubtful, doubtful_pairs


@pytest.mark.parametrize("ranks", [[0, 1], [0, 1, 2], [0, 2, 3, 7], list(range(9)), list(range(16))])
def test_a_tournament_has_every_pair_once_and_nobody_twice_in_a_round(ranks: list[int]) -> None:
    schedule = links.rounds(ranks)
    assert sorted(pair for pairs in schedule for pair in pairs) == list(combinations(ranks, 2))
    assert len(schedule) == len(ranks) - 1 + len(ranks) % 2
    for pairs in schedule:
        playing = [rank for pair in pairs for rank in pair]
        assert len(set(playing)) == len(playing)


def test_two_ends_of_a_link() -> None:
    got: dict[str, float] = {}
    with links.listen("127.0.0.1") as listener:
        port = listener.getsockname()[1]

        def answer() -> None:
            for kind in ("ping", "send", "take"):
                got[kind] = links.serve(listener, "word", kind, 0.1)

        thread = threading.Thread(target=answer)
        thread.start()
        stranger = links._call("127.0.0.1", port, "other ping")
        pinged = links.ping("127.0.0.1", port, "word")
        stranger.close()
        links.send("127.0.0.1", port, "word", 0.1)
        got["taken"] = links.take("127.0.0.1", port, "word", 0.1)
        thread.join()
    assert 0 < pinged.latency_s < 1
    assert abs(pinged.ahead_s) <= pinged.error_s + 1e-3
    assert got["send"] > 1e6
    assert got["taken"] > 1e6
    assert got["take"] == 0


def test_a_thread_that_sleeps_does_not_wait_for_a_processor() -> None:
    waiting = links.Waiting()
    time.sleep(0.2)
    assert 0 <= waiting.part() < 0.9


def test_doubt() -> None:
    good = {"share": 1.0, "fp32": 10.0, "bf16": 10.0, "memory": 10.0}
    assert doubtful({0: good, 1: good, 2: good}) == []
    assert doubtful({0: good, 1: {**good, "memory": 8.0}, 2: good}) == [1]
    assert doubtful_pairs({0: {"1": 9.0, "2": 9.0}, 1: {"0": 9.0, "2": 9.0}, 2: {"0": 1.0, "1": None}}) == [
        (0, 2), (1, 2)]


def test_of_two_measurements_the_better_counts() -> None:
    first = {"latency_s": 1.0, "ahead_s": 0.1, "received": 5.0, "waited": 0.5, "error": None}
    second = {"latency_s": 2.0, "ahead_s": 0.2, "received": 7.0, "waited": 0.0, "error": None}
    failed = {"latency_s": None, "ahead_s": None, "received": None, "waited": None, "error": "gone"}
    assert better(None, failed) == failed
    assert better(failed, first) == better(first, failed) == first
    assert better(first, second) == {**first, "received": 7.0, "waited": 0.0}


def test_tokens_in_the_folder(tmp_path: Path) -> None:
    mine, other = ProbeFolder(tmp_path, 0), ProbeFolder(tmp_path, 1)
    mine.put_token("a")
    other.put_token("b")
    assert mine.unseen({0: "a", 1: "b"}, 0) == []
    assert mine.unseen({0: "a", 1: "c", 2: "d"}, 0) == [1, 2]
    assert mine.names() == []
    (tmp_path / "hosts.json").write_text('["n1", "n2"]')
    assert mine.names() == ["n1", "n2"]
