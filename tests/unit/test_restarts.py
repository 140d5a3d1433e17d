"""Which failures are worth another start, and how often; what is told of ranks that an elastic job lost."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from launch.losses import SETTLE_S, Losses
from launch.report import Ending, tell_loss, tell_losses
from launch.restarts import LONG_S, MOST_WAIT_S, Outcome, Restarts, found_fault, may_go_better


def cut_off(rank: int, error: str = "a peer is gone.") -> Ending:
    return Ending(rank, 2, 1.0, error=error, kind="WorldError")



@pytest.mark.parametrize(("endings", "lost", "expected"), [
    ([Ending(0, -9, 1.0), cut_off(1)], (), True),
    ([Ending(0, 137, 1.0), Ending(1, -15, 2.0, unasked=False)], (), True),  # a shell's child
    ([Ending(0, 1, 1.0), Ending(1, 1, 1.0)], (), False),
    ([cut_off(0, "rank 0 hears 1"), cut_off(1, "rank 1 hears 1")], (), True),
    ([cut_off(0), cut_off(1)], (), False),  # the environment is wrong
    ([Ending(0, 2, 1.0, error="bad key", kind="ConfigError"), Ending(1, -9, 1.0)], (), False),
    ([cut_off(0), Ending(1, 2, 1.0, error="shard 7", kind="ShardError")], (), False),
    ([Ending(0, 2, 1.0), Ending(1, 2, 1.0, error="another")], (), False),  # not by a program of ours
    ([Ending(0, 3, 1.0, kind="DivergedError"), Ending(1, -9, 1.0)], ("node2",), False),
    ([Ending(0, 1, 1.0)], ("node2",), True),
    ([Ending(0, 143, 1.0), Ending(1, -signal.SIGINT, 1.0)], (), False),  # somebody asked them
    ([Ending(0, 255, 1.0), Ending(1, 255, 1.0)], (), False),
])
def test_what_is_tried_again(endings: list[Ending], lost: tuple[str, ...], expected: bool) -> None:
    assert may_go_better(endings, 2, lost) is expected


@pytest.mark.parametrize(("ending", "expected"), [
    (Ending(1, 2, 1.0, kind="ManifestError"), True), (Ending(1, 3, 1.0, kind="DivergedError"), True),
    (Ending(1, 2, 1.0, kind="WorldError"), False), (Ending(1, -9, 1.0), False), (Ending(1, 143, 1.0), False),
    (Ending(1, 2, 1.0, unasked=False, kind="ConfigError"), False), (Ending(1, 1, 1.0), False)])
def test_who_found_fault_with_its_input(ending: Ending, expected: bool) -> None:
    assert found_fault(ending) is expected


def test_the_pause_doubles_and_the_count_begins_anew_after_a_long_life() -> None:
    restarts = Restarts(3, 100.0)
    assert [restarts.pause_s(1.0) for _ in range(4)] == [100.0, 200.0, MOST_WAIT_S, None]
    assert restarts.pause_s(LONG_S) == 100.0
    assert Restarts(0, 1.0).pause_s(LONG_S) is None
    assert Restarts(1000, 3600.0).pause_s(0.0) == MOST_WAIT_S


def test_what_is_not_started_again(capsys: pytest.CaptureFixture[str]) -> None:
    for outcome in (Outcome(0), Outcome(2), Outcome(143, stopped=15, again=True)):
        assert Restarts(3, 600.0).after(outcome, 1.0) is outcome
    failed = Outcome(137, again=True)
    assert Restarts(0, 600.0).after(failed, 1.0) is failed
    assert capsys.readouterr().err == ""
    restarts = Restarts(1, 0.0)
    assert restarts.after(failed, 1.0) is None
    assert restarts.after(failed, 1.0) is failed
    assert capsys.readouterr().err.splitlines() == [
        "launch: the job failed; it starts again in 0 s (restart 1 of 1)", "launch: given up after 1 restart in a row"]


def test_a_loss_is_told_once_and_not_before_all_had_the_time_to_fail() -> None:
    losses, endings = Losses(), [Ending(0, 0, 1.0), Ending(1, -9, 1.0)]
    assert losses.due(endings, 10.0) == []
    assert losses.due_at() == 10.0 + SETTLE_S
    assert losses.due(endings, losses.due_at()) == endings[1:]
    assert losses.due(endings, 99.0) == []
    assert losses.due_at() == float("inf")
    assert losses.speaker(endings) is None
    assert losses.fates(endings) == {1: "was killed by SIGKILL"}
    losses.comes_back(1)
    assert losses.fates([endings[0], Ending(1, 0, 2.0)]) == {1: "was killed by SIGKILL, and came back"}


def test_who_speaks_for_a_rank_0_that_was_lost() -> None:
    losses = Losses()
    losses.due([Ending(0, -9, 1.0), Ending(1, 1, 1.0)], 0.0)
    assert losses.speaker([Ending(0, 0, 3.0), Ending(1, 0, 3.0), Ending(2, 0, 3.0)]) == 2


def test_the_words_about_a_loss() -> None:
    told = tell_loss(Ending(1, 2, 1.0, tail=("x", "error: cut off.")), "node2", 1, Path("/logs"))
    assert told == ("launch: rank 1 on node2 is lost: it ended with exit code 2: cut off.; 1 other goes on "
                    "(output: /logs)")
    assert "2 others go on" in tell_loss(Ending(0, -9, 1.0), "node1", 2, Path("/logs"))
    assert tell_losses({}) == []
