"""What is told about ranks that failed."""

from __future__ import annotations

from pathlib import Path

import pytest

from launch.report import Ending, first_failure, tell_failure, tell_stop

LOGS = Path("/logs")


def test_nothing_to_tell() -> None:
    assert tell_failure([Ending(0, 0, 1.0), Ending(1, 0, 2.0)], LOGS) == []


def test_the_first_that_failed_by_itself() -> None:
    endings = [Ending(0, 1, 5.0), Ending(1, -9, 3.0), Ending(2, 1, 1.0, unasked=False), Ending(3, 0, 0.0)]
    first = first_failure(endings)
    assert first is not None
    assert (first.rank, first.status) == (1, 137)


def test_the_same_error_of_all_ranks_is_told_once_by_rank_0() -> None:
    endings = [Ending(rank, 2, 5.0 - rank, error="bad file.", tail=("error: bad file.",) * bool(rank))
               for rank in range(3)]
    assert tell_failure(endings, LOGS) == []


def test_rank_0_needs_no_second_line_for_bad_input() -> None:
    assert tell_failure([Ending(0, 2, 1.0), Ending(1, 2, 2.0), Ending(2, -15, 3.0, unasked=False)], LOGS) == []
    assert len(tell_failure([Ending(0, 2, 1.0), Ending(1, 1, 2.0)], LOGS)) == 1
    assert len(tell_failure([Ending(0, 1, 1.0), Ending(1, 1, 2.0)], LOGS)) == 1


def test_the_cause_is_told_though_rank_0_told_the_consequence() -> None:
    endings = [Ending(0, 2, 2.0, error="a rank was lost."), Ending(1, 2, 1.0, error="shard 7 is damaged.")]
    assert tell_failure(endings, LOGS) == ["error: rank 1: shard 7 is damaged. (output of the other ranks: /logs)"]


def test_an_error_line_on_stderr_is_as_good_as_an_error_file() -> None:
    endings = [Ending(1, 2, 1.0, tail=("warning", "error: bad shard."))]
    assert tell_failure(endings, None) == ["error: rank 1: bad shard."]


def test_a_traceback_is_shown() -> None:
    lines = tell_failure([Ending(1, 1, 1.0, tail=("Traceback", "ValueError: x"))], LOGS)
    assert lines == ["launch: rank 1 failed first: it ended with exit code 1 (output of the other ranks: /logs)",
                     "  Traceback", "  ValueError: x"]


@pytest.mark.parametrize(("code", "told"), [(-9, "SIGKILL, as the kernel does when memory runs out"),
                                            (-11, "SIGSEGV"), (-99, "signal 99"), (7, "exit code 7")])
def test_how_rank_0_ended(code: int, told: str) -> None:
    assert told in tell_failure([Ending(0, code, 1.0)], None)[0]


def test_ranks_that_ended_oddly_when_asked_to_stop() -> None:
    endings = [Ending(rank, code, 1.0, unasked=False) for rank, code in enumerate((0, 143, -15, 130, 1, -11, -9))]
    told = tell_stop(endings, 15, None)
    assert [line.split()[2] for line in told] == ["3", "4", "5"]
