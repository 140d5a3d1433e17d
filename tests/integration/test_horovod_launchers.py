"""Under Horovod's own launcher and under MPI's, where nobody says where the ranks meet, the model is the same."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from distrib.comm.horovod import missing

Start = Callable[..., "subprocess.Popen[str]"]
LIMIT_S = 200
TWENTY = ("--set", "train.steps=20", "--set", "evaluate.every_epochs=10", "--set", "train.lr=0.01", "--json")
AS_ROOT = ("--allow-run-as-root",) if os.geteuid() == 0 else ()
LAUNCHERS = {
    "alone": (),
    "horovodrun over gloo": (str(Path(sys.executable).with_name("horovodrun")), "--gloo", "-np", "2"),
    "mpirun": ("mpirun", *AS_ROOT, "--oversubscribe", "-np", "2"),
}


@pytest.mark.timeout(3 * LIMIT_S + 60)
def test_the_model_is_the_same_under_each(start: Start, experiment: Path, tmp_path: Path) -> None:
    lack = missing() or next((f"{words[0]} is not installed" for words in LAUNCHERS.values()
                              if words and shutil.which(words[0]) is None), None)
    if lack is not None:
        assert os.environ.get("CI") != "true", lack
        pytest.skip(lack)
    digests = {}
    for number, (launcher, words) in enumerate(LAUNCHERS.items()):
        process = start(*words, sys.executable, "-m", "distrib", "train", experiment, *TWENTY, "--set",
                        "comm.backend=horovod", "--run", tmp_path / str(number))
        out, err = process.communicate(timeout=LIMIT_S)
        assert process.returncode == 0, err[-3000:]
        result = json.loads(out[out.index("{"):])  # horovodrun puts the rank before a line
        assert result["world_size"] == (2 if words else 1)
        digests[launcher] = result["weights_sha256"]
    assert len(set(digests.values())) == 1, digests


def test_another_backend_says_that_the_ranks_can_not_meet(start: Start, experiment: Path, tmp_path: Path) -> None:
    if shutil.which("mpirun") is None:
        assert os.environ.get("CI") != "true"
        pytest.skip("mpirun is not installed")
    process = start(*LAUNCHERS["mpirun"], sys.executable, "-m", "distrib", "train", experiment, *TWENTY, "--set",
                    "comm.backend=gloo", "--run", tmp_path / "run")
    _, err = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 2
    assert "OMPI_COMM_WORLD_SIZE=2, but MASTER_ADDR and MASTER_PORT are not set" in err
    assert not (tmp_path / "run").exists()
