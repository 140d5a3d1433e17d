"""Whatever befalls an elastic run, it finishes, with the model of an undisturbed run; see `tests.rig.faults`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from distrib.comm.table import backend_module
from distrib.report.history import read_history
from distrib.rundir import RunDir
from tests.conftest import EXPERIMENT
from tests.rig.faults import FAULTS, LAUNCHED, Fault, Outcome, run_fault, run_storm
from tests.rig.launched import LAUNCHERS, launched
from tests.rig.launched import why_not as launcher_lacks
from tests.rig.nodes import why_not

OVERRIDES = ("train.steps=150", "evaluate.every_epochs=5")
QUICK: dict[str, set[str]] = {
    "gloo": {"rank 0 is killed during a regroup", "rank 0 gets SIGTERM",
             "a bit flips in one of three", "all die, a byte of the newest checkpoint flips",
             "rank 0's cable is out for a while"},
    "oneccl": {"rank 0 is killed"},
}
"""The others with `make soak`: importing torch in all their processes takes most of the time."""


@pytest.fixture(scope="module")
def undisturbed(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """(an experiment, the digest of its model)."""
    folder = tmp_path_factory.mktemp("faults")
    experiment = folder / "experiment.yaml"
    experiment.write_text(EXPERIMENT.format(dataset=dataset))
    words = [word for setting in OVERRIDES for word in ("--set", setting)]
    subprocess.run([sys.executable, "-m", "distrib", "train", experiment, *words, "--run", folder / "whole"],
                   check=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    return experiment, json.loads((folder / "whole" / "result.json").read_text())["weights_sha256"]


@pytest.mark.parametrize(("fault", "backend"), [
    pytest.param(fault, backend, id=f"{fault.name}-{backend}",
                 marks=pytest.mark.soak if fault.name not in QUICK[backend] else ())
    for backend in ("gloo", "oneccl") for fault in FAULTS])
def test_the_model_is_that_of_an_undisturbed_run(undisturbed: tuple[Path, str], tmp_path: Path, fault: Fault,
                                                 backend: str) -> None:
    lack = backend_module(backend).missing()
    if lack is not None:
        assert os.environ.get("CI") != "true", lack
        pytest.skip(lack)
    if fault.where == "nodes" and (lack := why_not()) is not None:
        assert os.environ.get("CI") != "true", lack
        pytest.skip(lack)
    experiment, digest = undisturbed
    check(fault, digest, run_fault(fault, experiment, tmp_path / "run", backend, OVERRIDES))
    if fault.lost and not fault.again and fault.where == "here":
        told = {who.split()[1] for change in read_history(RunDir(tmp_path / "run")).changes for who in change.lost}
        assert told
        assert told <= set(map(str, fault.lost))


def check(fault: Fault, digest: str, outcome: Outcome) -> None:
    assert outcome.finished, outcome.errors
    assert outcome.weights_sha256 == digest, outcome.errors
    assert not any(outcome.codes), outcome.errors
    assert fault.says in outcome.errors
    assert outcome.done_again <= fault.most_done_again
    assert (outcome.repeated, outcome.missing) == (0, 0)


@pytest.mark.parametrize(("fault", "launcher"), [
    pytest.param(fault, launcher, id=f"{fault.name}-{launcher}",
                 marks=() if (fault.name, launcher) == ("rank 0 is killed", "mpirun.openmpi") else pytest.mark.soak)
    for launcher in LAUNCHERS if launcher != "torchrun" for fault in LAUNCHED
    if not (launcher == "local" and fault.where == "nodes")])
def test_under_real_launchers(undisturbed: tuple[Path, str], tmp_path: Path, fault: Fault, launcher: str) -> None:
    lack = launcher_lacks(launcher)
    if lack is not None:
        assert os.environ.get("CI") != "true", lack
        pytest.skip(lack)
    experiment, digest = undisturbed
    check(fault, digest, run_fault(fault, experiment, tmp_path / "run", "gloo", OVERRIDES,
                                   within=partial(launched, launcher)))


@pytest.mark.soak
@pytest.mark.parametrize(("seed", "faults"), [(1, 200)])
def test_two_hundred_random_faults(dataset: Path, tmp_path: Path, seed: int, faults: int) -> None:
    """STORM=SEED,FAULTS in the environment chooses others."""
    if "STORM" in os.environ:
        seed, faults = map(int, os.environ["STORM"].split(","))
    experiment = tmp_path / "experiment.yaml"
    experiment.write_text(EXPERIMENT.format(dataset=dataset))
    settings = ("train.schedule=constant", "evaluate.every_epochs=1000")
    steps, digest, errors = run_storm(seed, faults, experiment, tmp_path / "run", settings)
    whole = run_fault(Fault("none", lambda world: None), experiment, tmp_path / "whole", "gloo",
                      (f"train.steps={steps}", *settings))
    assert digest == whole.weights_sha256, errors
