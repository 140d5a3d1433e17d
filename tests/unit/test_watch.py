from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from distrib.comm.group import Group
from distrib.config import WatchConfig
from distrib.rundir import RunDir
from distrib.train.log import RunLog
from distrib.train.pace import Period, StepMeans
from distrib.train.places import Place
from distrib.train.reduction import Stop
from distrib.train.watch import WARM_UP, Report, Rows, Watch

PLACES = [Place("node1", 0), Place("node1", 0), Place("node2", 2), Place("node2", 2)]
NODE, NONE = [75.0, 4.0, 0.0, 8.0, 8.0, 0.0, 1.0, 1.0], [np.nan] * 8


def rows(work_s: Sequence[float], waited_s: Sequence[float]) -> Rows:
    """Two nodes of two ranks, which keep one of four processors busy each, of three that are."""
    return np.array([[0.1, work, 0.0, 1.0, waited, 0.0, np.nan, *(NODE if rank % 2 == 0 else NONE)]
                     for rank, (work, waited) in enumerate(zip(work_s, waited_s, strict=True))])


def test_a_slow_rank_is_told_once_and_again_when_something_changed(tmp_path: Path,
                                                                   capsys: pytest.CaptureFixture[str]) -> None:
    step = 0

    def told(looks: int, slow_s: float, waited_s: float) -> list[str]:
        nonlocal step
        for _ in range(looks):
            report.take(step + 1, step + 10, rows([1.0, 1.0, 1.0, slow_s], [0.0, 0.0, 0.0, waited_s]))
            step += 10
        return capsys.readouterr().err.splitlines()

    with RunLog(RunDir(tmp_path), first_step=0, total_steps=100) as log:
        report = Report(WatchConfig(slow_factor=1.5), PLACES, log)
        assert told(6, 1.0, 0.0) == []
        assert told(10, 2.0, 0.0) == [
            "slow: rank 3 on node2 takes 2 s for its own work on a lane and step, 2.0 times the other ranks' median, "
            "since step 61; neither it nor its node shows a cause"]
        assert told(10, 2.0, 0.8) == [
            "slow: rank 3 on node2 takes 2 s for its own work on a lane and step, 2.0 times the other ranks' median, "
            "since step 61; likely cause: it waits for a processor 40% of that time, other processes keep 1.0 of its "
            "node's 4 processors busy"]
        assert told(5, 2.0, 0.0) == []  # the cause comes and goes
        (again,) = told(5, 4.5, 0.0)
        assert "4.5 times" in again
        assert told(5, 1.0, 0.0) == ["rank 3 on node2 is no longer slow, at step 380"]
    events = [json.loads(line) for line in RunDir(tmp_path).metrics.read_text().splitlines()]
    nodes = [event for event in events if event["event"] == "node"]
    assert [event["host"] for event in nodes] == ["node1", "node2"] * 41
    assert {event["others_cores"] for event in nodes} == {1.0}
    assert [event["step"] for event in events if event["event"].startswith("slow")] == [80, 180, 330, 380]
    assert len([event for event in events if event["event"] == "ranks"]) == 41


def test_warm_up_is_in_no_score_and_a_step_done_again_counts_once(group: Group, tmp_path: Path) -> None:
    with RunLog(RunDir(tmp_path), first_step=0, total_steps=100) as log:
        watch = Watch(WatchConfig(every_s=1.0), group, 4, log)
        for step in range(WARM_UP):
            watch.after(step, Period([StepMeans(1, 1, 1)], None, Stop.NO, 0, 9.0, 9.0, 0.0), 0.25, last=False)
        for step in range(WARM_UP, WARM_UP + 4):  # a look is due after four, by what the warm-up took
            watch.after(step, Period([StepMeans(1, 1, 1)], None, Stop.NO, 1, 0.4, 1.6, 5.0), 0.25, last=False)
        watch.after(6, Period([StepMeans(1, 1, 1)] * 2, None, Stop.NO, 0, 0.0, 0.8, 0.0), 0.25, last=True)
    events = [json.loads(line) for line in RunDir(tmp_path).metrics.read_text().splitlines()]
    looks = [(event["step"], event["work_s"], event["data_s"]) for event in events if event["event"] == "ranks"]
    assert looks == [(6, [0.3], [0.1]), (8, [0.1], [0.0])]
    assert [event["step"] for event in events if event["event"] == "node"] == [2, 6, 8]
