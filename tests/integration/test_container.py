"""The container image, built and run for real: it trains the same model as outside, and takes any command."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.rig.image import Image, why_not

ROOT = Path(__file__).resolve().parents[2]
DIGITS = ROOT / "examples" / "digits"
LIMIT_S = 120
pytestmark = pytest.mark.image
NOBODY = "12345:12345"
"""A user that no /etc/passwd knows."""
TWENTY = ("--set", "train.steps=20", "--set", "evaluate.every_epochs=10", "--set", "evaluate.bootstrap=20", "--json")


@pytest.fixture(scope="module")
def image() -> Image:
    lack = why_not()
    if lack is not None:
        assert os.environ.get("CI") != "true", lack
        pytest.skip(lack)
    return Image()


def outside(*words: str | Path) -> Any:
    """Run one of our commands on this machine; what it prints as JSON."""
    done = subprocess.run([sys.executable, "-m", *map(str, words)], capture_output=True, text=True, timeout=LIMIT_S,
                          env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the digits as a dataset, which every user may read."""
    folder = tmp_path_factory.mktemp("digits")
    subprocess.run([sys.executable, DIGITS / "make_digits.py", folder / "raw"], check=True, stdout=subprocess.DEVNULL)
    outside("distrib", "prepare", folder / "raw" / "images", "--labels", folder / "raw" / "labels.csv",
            "--image-column", "image", "--label-column", "label", "--out", folder / "dataset", "--json")
    folder.chmod(0o755)
    return folder


@pytest.fixture(scope="module")
def expected(digits: Path) -> str:
    """weights_sha256 of twenty steps on two ranks, outside."""
    trained = outside("launch", "run", ROOT / "cluster_configs" / "container.yaml", "--ranks", "2", "--",
                      sys.executable, "-m", "distrib", "train", DIGITS / "digits.yaml", "--set",
                      f"data.dataset={digits / 'dataset'}", "--run", digits / "outside", *TWENTY)
    return str(trained["weights_sha256"])


def mounts(digits: Path, runs: Path) -> tuple[str, ...]:
    runs.mkdir()
    runs.chmod(0o777)
    return (f"--volume={digits}:/data:ro", f"--volume={DIGITS}:/digits:ro", f"--volume={runs}:/runs", "--user", NOBODY)


@pytest.mark.timeout(1200)  # the first run builds the image
def test_a_command_arrives_unchanged_and_its_exit_code_comes_back(image: Image) -> None:
    said = "import json, os, sys; print(json.dumps([os.getuid(), sys.argv[1:]])); sys.exit(7)"
    done = image.run("python", "-c", said, "--json", "a b", "$HOME", "--", "")
    assert json.loads(done.stdout) == [1000, ["--json", "a b", "$HOME", "--", ""]], done.stderr
    assert done.returncode == 7
    nothing = image.run()
    assert nothing.returncode == 0
    assert "Usage: distrib" in nothing.stdout


@pytest.mark.timeout(3 * LIMIT_S)
def test_two_ranks_of_a_container_train_the_same_model(image: Image, digits: Path, expected: str,
                                                       tmp_path: Path) -> None:
    """An unknown user, nothing to write to but the run and /tmp; oneCCL came with the image."""
    done = image.run("launch", "run", "/etc/distrib/container.yaml", "--ranks", "2", "--", "distrib", "train",
                     "/digits/digits.yaml", "--set", "data.dataset=/data/dataset", "--set", "comm.backend=oneccl",
                     "--run", "/runs/inside", *TWENTY, options=mounts(digits, tmp_path / "runs"), limit_s=LIMIT_S)
    assert done.returncode == 0, done.stderr[-3000:]
    trained = json.loads(done.stdout)
    assert trained["world_size"] == 2
    assert trained["weights_sha256"] == expected
    assert "tcmalloc" in done.stderr


@pytest.mark.timeout(3 * LIMIT_S)
def test_mpirun_starts_a_container_a_rank(image: Image, digits: Path, expected: str, tmp_path: Path) -> None:
    """The containers share the host's process numbers, which oneCCL tells the ranks of a host apart by."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    done = image.run("distrib", "train", "/digits/digits.yaml", "--set", "data.dataset=/data/dataset", "--run",
                     "/runs/mpirun", *TWENTY, limit_s=LIMIT_S,
                     before=("mpirun", "--allow-run-as-root", "--oversubscribe", "--bind-to", "none", "-np", "2"),
                     options=(*mounts(digits, tmp_path / "runs"), "--pid", "host", "--env", "OMPI_COMM_WORLD_*",
                              "--env", "MASTER_ADDR=127.0.0.1", "--env", f"MASTER_PORT={port}"))
    assert done.returncode == 0, done.stderr[-3000:]
    trained = json.loads(done.stdout)
    assert (trained["world_size"], trained["weights_sha256"]) == (2, expected)
