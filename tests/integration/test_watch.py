"""Watching with real processes: a rank that is held back is named, and one that is not is not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from launch.local import free_port
from tests.rig.nodes import Nodes, why_not

Start = Callable[..., "subprocess.Popen[str]"]
LIMIT_S = 120


def events(run: Path, kind: str) -> list[dict[str, Any]]:
    path = run / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    return [record for line in lines if line.endswith(b"\n") and (record := json.loads(line))["event"] == kind]


def command(experiment: Path, run: Path, *settings: str) -> list[str | Path]:
    words = [word for setting in settings for word in ("--set", setting)]
    return [sys.executable, "-m", "distrib", "train", experiment, "--run", run, "--json", *words]


def test_a_rank_that_is_held_back_is_named(start: Start, experiment: Path, tmp_path: Path) -> None:
    run, port = tmp_path / "run", free_port()
    ranks = [start(*command(experiment, run, "train.steps=100000", "evaluate.every_epochs=100000",
                            "watch.every_s=0.3", "watch.slow_factor=2.5", "comm.backend=gloo"),
                   RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE="2",
                   MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)) for rank in range(2)]
    deadline = time.monotonic() + LIMIT_S

    def goes_on() -> bool:
        assert time.monotonic() < deadline
        assert all(rank.poll() is None for rank in ranks), [rank.communicate() for rank in ranks]
        return True

    while not events(run, "ranks") and goes_on():
        time.sleep(0.05)
    named: list[dict[str, Any]] = []
    while not named and goes_on():  # runs for a twelfth of the time
        os.kill(ranks[1].pid, signal.SIGSTOP)
        time.sleep(0.11)
        os.kill(ranks[1].pid, signal.SIGCONT)
        time.sleep(0.01)
        named = [event for event in events(run, "slow_rank") if event["rank"] == 1]
    ranks[1].send_signal(signal.SIGTERM)
    outputs = [rank.communicate(timeout=LIMIT_S) for rank in ranks]
    assert [rank.returncode for rank in ranks] == [143, 143], outputs
    event = named[0]
    assert max(event["against_others"], event["against_past"] or 0) >= 2.5
    assert 0 < event["since_step"] <= event["step"]
    assert f"slow: rank 1 on {event['host']} takes {event['work_s']:.3g} s for its own work" in outputs[0][1]
    assert f"since step {event['since_step']}; " in outputs[0][1]
    assert "slow:" not in outputs[1][1]
    others = [event["against_others"] for event in events(run, "slow_rank") if event["rank"] == 0]
    assert all(score < 2.5 for score in others)  # against its own past, on a busy machine, it may be


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    if (reason := why_not()) is not None:
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    with Nodes(2, "10.84.0") as nodes:
        yield nodes


def test_nodes_are_in_the_metrics_and_nobody_is_named(nodes: Nodes, start: Start, experiment: Path,
                                                      tmp_path: Path) -> None:
    # A factor that no chance reaches, however busy the machine is.
    settings = ("train.steps=24", "evaluate.every_epochs=100", "comm.backend=gloo", "watch.slow_factor=50")
    ranks: list[subprocess.Popen[str]] = []
    try:
        for number, name in enumerate(nodes.names):
            environment = {"RANK": str(number), "WORLD_SIZE": "2", "MASTER_ADDR": nodes.address("node1"),
                           "MASTER_PORT": "29500", "OMP_NUM_THREADS": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1",
                           "PYTHONPATH": str(Path(__file__).parents[2])}
            ranks.append(nodes.start(name, command(experiment, tmp_path / "run", *settings, "watch.every_s=0.1"),
                                     environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE))
        outputs = [rank.communicate(timeout=LIMIT_S) for rank in ranks]
    finally:
        for rank in ranks:
            with suppress(ProcessLookupError):
                rank.kill()
            rank.communicate()
    assert [rank.returncode for rank in ranks] == [0, 0], outputs
    assert "slow:" not in outputs[0][1]
    assert not events(tmp_path / "run", "slow_rank")
    looks = events(tmp_path / "run", "ranks")
    assert looks[-1]["step"] == 24
    assert all(len(look[name]) == 2 and min(look[name]) > 0 for look in looks for name in ("work_s", "against_others"))
    told = events(tmp_path / "run", "node")
    assert [node["host"] for node in told] == ["node1", "node2"] * (len(told) // 2)
    for node in told:
        assert 0 <= node["cpu_percent"] <= 100
        assert node["memory_used_gb"] > 0
        assert node["memory_available_gb"] > 0
        assert node["others_cores"] <= node["cores"]
    for name in ("node1", "node2"):  # the gradients' way
        assert max(node["sent_mb_per_s"] for node in told if node["host"] == name) > 0
        assert max(node["received_mb_per_s"] for node in told if node["host"] == name) > 0
    assert list((tmp_path / "run" / "tensorboard").iterdir())

    alone = start(*command(experiment, tmp_path / "alone", *settings, "watch.every_s=0"))
    out, err = alone.communicate(timeout=LIMIT_S)
    assert alone.returncode == 0, err
    assert not events(tmp_path / "alone", "node")
    assert not events(tmp_path / "alone", "ranks")
    assert json.loads(out)["weights_sha256"] == json.loads(outputs[0][0])["weights_sha256"]
