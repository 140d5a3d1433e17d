"""Ranks of an elastic run that end before all have met: the others begin without them, or end with one clear line."""

from __future__ import annotations

import json
import socket
import sys
from pathlib import Path

import pytest

from tests.conftest import EXPERIMENT, Start
from tests.rig.faults import World, ends

STEPS = ("--set", "train.steps=12", "--set", "comm.silence_s=2", "--set", "comm.timeout_s=8")


@pytest.fixture(scope="module")
def digest(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Of the model that one rank trains."""
    folder = tmp_path_factory.mktemp("alone")
    (folder / "experiment.yaml").write_text(EXPERIMENT.format(dataset=dataset))
    with World(folder / "run", 1, [folder / "experiment.yaml", *STEPS]) as world:
        assert world.wait() == [0], world.errors()
    return str(json.loads((folder / "run" / "result.json").read_text())["weights_sha256"])


@pytest.mark.parametrize(("point", "backend"), [
    ("before it tells where it is", "gloo"), ("before it calls anyone", "gloo"),
    pytest.param("after it called the first", "gloo", marks=pytest.mark.soak), ("when all are connected", "auto")])
def test_the_others_begin_without_a_rank_that_ended_before_all_met(
        experiment: Path, tmp_path: Path, digest: str, point: str, backend: str) -> None:
    run = tmp_path / "run"
    with World(run, 3, [experiment, *STEPS, "--set", f"comm.backend={backend}"],
               program=ends(2, point)) as world:
        assert world.wait() == [0, 0, 9], world.errors()
        errors = world.errors()
    assert json.loads((run / "result.json").read_text())["weights_sha256"] == digest
    assert "Traceback" not in errors
    where = "" if point == "before it tells where it is" else f" on {socket.gethostname()}"
    assert f"lost: 1 rank (number 2{where}); 2 ranks go on\n" in errors


def test_without_rank_0_the_others_end_with_its_name(experiment: Path, tmp_path: Path) -> None:
    with World(tmp_path / "run", 2, [experiment, *STEPS], program=ends(0, "before it tells where it is")) as world:
        assert world.wait() == [9, 2]
        errors = world.errors()
    assert "rank 0 at 127.0.0.1, port" in errors
    assert "was lost or never came" in errors
    assert "Traceback" not in errors


def test_a_port_that_is_taken_is_one_line(start: Start, experiment: Path, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        rank = start(sys.executable, "-m", "distrib", "train", experiment, *STEPS, "--run", tmp_path / "run", RANK="0",
                     WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=port, LAUNCH_ELASTIC="1")
        _, err = rank.communicate(timeout=60)
    assert rank.returncode == 2
    assert f"error: port {port} of 127.0.0.1 is taken by another program" in err
    assert "Traceback" not in err
