"""Elastic runs on several nodes that lose their power, their cable, or most of its speed."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.rig.faults import AT_STEP, NodesWorld, World
from tests.rig.nodes import Nodes, why_not

SETTINGS = ("train.steps=80", "evaluate.every_epochs=5", "comm.backend=gloo", "comm.silence_s=2")


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    lack = why_not()
    if lack is not None:
        assert os.environ.get("CI") != "true", lack
        pytest.skip(lack)
    with Nodes(3) as made:
        yield made


def result(run: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads((run / "result.json").read_text())
    return found


@pytest.mark.parametrize("fault", ["rank 0's cable is out for a while", *(
    pytest.param(fault, marks=pytest.mark.soak)
    for fault in ("rank 0's node dies", "a cable is out", "a cable at 1% of its speed"))])
def test_the_others_go_on_and_the_model_is_the_same(nodes: Nodes, experiment: Path, tmp_path: Path,
                                                    fault: str) -> None:
    arguments: list[str | Path] = [experiment, *(word for one in SETTINGS for word in ("--set", one))]
    with World(tmp_path / "whole", 1, arguments) as alone:
        assert alone.wait() == [0], alone.errors()
    run, lost = tmp_path / "run", 1 if fault == "a cable is out" else 0
    with NodesWorld(nodes, run, arguments) as world:
        world.until_step(AT_STEP)
        if fault == "rank 0's node dies":
            nodes.kill("node1")
        elif fault == "a cable at 1% of its speed":
            nodes.shape("node2", "10mbit")
        else:
            nodes.cut(f"node{lost + 1}")
        if fault == "rank 0's cable is out for a while":
            time.sleep(5.0)
            nodes.cut("node1", cut=False)
        codes = dict(enumerate(world.wait()))
        errors = world.errors()
    if fault != "a cable at 1% of its speed":
        code = codes.pop(lost)
        assert code != 0
        if fault != "rank 0's node dies":
            assert "no two models are trained from one run" in errors
    assert not any(codes.values()), errors
    assert result(run)["weights_sha256"] == result(tmp_path / "whole")["weights_sha256"], errors
