"""Who joins an elastic run takes what the others run, and costs them nothing if it can not."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from tests.conftest import EXPERIMENT, MakeDataset
from tests.rig.faults import World, _ledger
from tests.rig.late import TELLS

STEPS = 200
SETTINGS = (f"train.steps={STEPS}", "comm.silence_s=2", "comm.backend=gloo", "train.ledger=true", "guard.every_steps=5",
            "watch.every_s=0")
SLOW = (sys.executable, "-m", "tests.rig.slowed")
LATE = (sys.executable, "-m", "tests.rig.late")


def words(*settings: str) -> list[str]:
    return [word for setting in settings for word in ("--set", setting)]


@pytest.fixture(scope="module")
def digest(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Of the model that one rank trains."""
    folder = tmp_path_factory.mktemp("alone")
    (folder / "experiment.yaml").write_text(EXPERIMENT.format(dataset=dataset))
    with World(folder / "run", 1, [folder / "experiment.yaml", *words(*SETTINGS)]) as world:
        assert world.wait() == [0], world.errors()
    return str(json.loads((folder / "run" / "result.json").read_text())["weights_sha256"])


def test_a_joiner_takes_what_the_others_run_and_hands_it_on(experiment: Path, tmp_path: Path, digest: str) -> None:
    """Its own words for what does not change the model do not count, also when it leads and another joins. The others
    do not wait while it imports what takes long.
    """
    run = tmp_path / "run"
    odd = words("comm.backend=auto", "guard.every_steps=0", "train.ledger=false", "checkpoint.every_steps=3")
    with World(run, 2, [experiment, *words(*SETTINGS)], program=LATE) as world:
        world.until_step(3)
        world.start({}, "--join", *odd)
        world.until(lambda: "joined: 1 rank (number 2" in world.errors())
        world.until_step(world.records()[-1]["step"] + 3)
        world.signal(9, 0, 1)
        world.until_step(world.records()[-1]["step"] + 2)
        world.start({}, "--join")
        world.until(lambda: "joined: 1 rank (number 3" in world.errors())
        world.hurry()
        codes = world.wait(without=[0, 1])
        errors = world.errors()
    assert codes == [0, 0], errors
    late = {name for words in re.findall(f"{TELLS}(.*)", errors) for name in words.split()}
    assert late
    assert not late & {"numba", "scipy", "sklearn.metrics", "tensorboard", "torch._dynamo"}
    assert json.loads((run / "result.json").read_text())["weights_sha256"] == digest
    assert json.loads((run / "result.json").read_text())["world_size"] == 2
    assert _ledger(run, STEPS) == (0, 0)


@pytest.mark.soak  # eight ranks on two cores
def test_a_joiner_with_other_data_and_one_too_many_cost_the_others_nothing(
        experiment: Path, tmp_path: Path, digest: str, make_dataset: MakeDataset) -> None:
    run = tmp_path / "run"
    with World(run, 8, [experiment, *words(*SETTINGS)], program=SLOW) as world:  # as many as lanes
        world.until_step(3)
        world.start({}, "--join", *words(f"data.dataset={make_dataset(train=30)}"))
        world.start({}, "--join")
        assert world.ranks[8].wait(60) == 2
        world.until(lambda: "8 ranks for train.lanes = 8: this one waits until one of them is lost" in world.errors())
        world.signal(9, 3)
        world.until(lambda: "joined: 1 rank (number 8" in world.errors())
        world.hurry()
        codes = world.wait(without=[3, 8])
        errors = world.errors()
    assert not any(codes), errors
    assert "is not the one that" in errors
    assert json.loads((run / "result.json").read_text())["weights_sha256"] == digest
