"""The same bits over every backend: exact sums have no order."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from distrib.comm.table import BACKENDS
from launch.local import free_port

Start = Callable[..., "subprocess.Popen[str]"]
LIMIT_S = 120
FIFTY = ("--set", "train.steps=50", "--set", "evaluate.every_epochs=10", "--set", "train.lr=0.01")


def train(start: Start, size: int, *arguments: str | Path) -> str:
    """Train in a world; its weights' digest."""
    port = str(free_port())
    ranks = [start(sys.executable, "-m", "distrib", "train", *arguments, "--json", RANK=str(rank),
                   WORLD_SIZE=str(size), LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE=str(size), MASTER_ADDR="127.0.0.1",
                   MASTER_PORT=port) for rank in range(size)]
    outputs = [rank.communicate(timeout=LIMIT_S) for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0] * size, "\n".join(err[-2000:] for _, err in outputs)
    result = json.loads(outputs[0][0])
    assert result["step"] == 50
    return str(result["weights_sha256"])


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("backend", "sizes"), [
    ("oneccl", (3,)), ("horovod", (2,)), pytest.param("oneccl", (1, 2, 4), marks=pytest.mark.soak),
    pytest.param("horovod", (1, 3, 4), marks=pytest.mark.soak)])
def test_every_backend_trains_gloos_model(start: Start, experiment: Path, tmp_path: Path, backend: str,
                                          sizes: tuple[int, ...]) -> None:
    lack = importlib.import_module(BACKENDS[backend].partition(":")[0]).missing()
    if lack is not None:
        assert os.environ.get("CI") != "true", lack
        pytest.skip(lack)
    expected = train(start, 2, experiment, *FIFTY, "--set", "comm.backend=gloo", "--run", tmp_path / "gloo")
    digests = {size: train(start, size, experiment, *FIFTY, "--set", f"comm.backend={backend}",
                           "--run", tmp_path / str(size)) for size in sizes}
    assert digests == dict.fromkeys(sizes, expected)
