"""`distrib train --from`: the source's weights, its rows of the head, the stated mixture, and no need of it later."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from distrib.config import load_run_experiment
from distrib.data.manifest import load_manifest
from distrib.data.update import run_update
from distrib.errors import BundleError, CheckpointError, ConfigError, DistribError
from distrib.export.run import run_export
from distrib.models.table import build_model
from distrib.rundir import RunDir
from distrib.train.run import run_train
from distrib.train.settle import settle
from distrib.train.start import take_start
from distrib.trained import load_trained
from distrib.verify.run import run_replay
from distrib.world import World
from launch.local import free_port
from tests.conftest import draw_image, write_dataset

Start = Callable[..., "subprocess.Popen[str]"]
EXPERIMENT = """\
data: {{dataset: {dataset}, image_size: 16, new_ratio: {ratio}}}
model: {{name: small_cnn}}
train: {{steps: 6, global_batch: 16, lanes: 4, lr: 0.02, precision: fp32, ledger: true}}
evaluate: {{bootstrap: 0, every_epochs: 100}}
checkpoint: {{every_steps: 3}}
"""


@pytest.fixture(autouse=True)
def _one_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)


def train(experiment: Path | None, run: Path, *overrides: str, source: Path | None = None) -> dict[str, Any]:
    return run_train(settle(experiment, overrides, run, World(), source), World(), lambda _: None)


def weights(run: Path) -> str:
    return load_trained(RunDir(run), lambda _: None).weights_sha256


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """data, its next version, experiments on both, a run and its bundle. Not to be changed."""
    here = tmp_path_factory.mktemp("retrain")
    write_dataset(here / "data", test=12)
    rng = np.random.default_rng(7)
    for number in range(40):
        label = number % 4  # a class that is new, too
        path = here / f"new/angle{label}/{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), draw_image(label, rng, 32))
    run_update(here / "data", here / "new", here / "data2", new_classes=True, workers=1)
    (here / "old.yaml").write_text(EXPERIMENT.format(dataset=here / "data", ratio="null"))
    (here / "new.yaml").write_text(EXPERIMENT.format(dataset=here / "data2", ratio=0.25))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GLOO_SOCKET_IFNAME", "lo")
        torch.set_num_threads(1)
        train(here / "old.yaml", here / "base")
    run_export(here / "base", out=here / "bundle", formats=["torch"], num_samples=8)
    return here


def test_a_warm_start_mixes_as_stated_and_goes_on_without_its_source(place: Path, tmp_path: Path,
                                                                     start: Start) -> None:
    source = tmp_path / "source"
    shutil.copytree(place / "base", source)
    whole = train(place / "new.yaml", tmp_path / "whole", source=source)
    begun = load_run_experiment(RunDir(tmp_path / "whole")).model.start
    assert begun is not None
    assert (begun.weights_sha256, begun.classes) == (weights(source), ("angle0", "angle1", "angle2"))

    samples = load_manifest(place / "data2").samples("train")
    versions = dict(zip(samples.keys, samples.versions, strict=True))
    for line in map(json.loads, (tmp_path / "whole/ledger/rank-0.jsonl").read_text().splitlines()):
        assert sum(versions[key] == 2 for key in line["keys"]) == 1  # of 4 in every lane

    assert train(place / "new.yaml", tmp_path / "cold")["weights_sha256"] != whole["weights_sha256"]
    bundled = train(place / "new.yaml", tmp_path / "bundled", source=place / "bundle")
    assert bundled["weights_sha256"] == whole["weights_sha256"]

    command = (sys.executable, "-m", "distrib", "train", place / "new.yaml", "--from", source, "--run",
               tmp_path / "two", "--json")
    world = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    ranks = [start(*command, **world, RANK=str(rank), LOCAL_RANK=str(rank)) for rank in range(2)]
    outputs = [rank.communicate(timeout=120) for rank in ranks]
    assert json.loads(outputs[0][0])["weights_sha256"] == whole["weights_sha256"], outputs

    # Back to before the first checkpoint and the source gone: the run's own copy serves.
    shutil.rmtree(source)
    shutil.rmtree(tmp_path / "two/checkpoints")
    assert train(None, tmp_path / "two")["weights_sha256"] == whole["weights_sha256"]
    assert train(place / "new.yaml", tmp_path / "two", source=source)["finished"]
    assert run_replay(tmp_path / "two", steps=3, keep=None, data=None, tell=lambda _: None)["same"]
    with pytest.raises(ConfigError, match=r"was begun from .*source, not from"):
        train(place / "new.yaml", tmp_path / "two", source=place / "base")

    (tmp_path / "two/start.safetensors").write_bytes((place / "base/experiment.json").read_bytes())
    shutil.rmtree(tmp_path / "two/checkpoints")
    with pytest.raises(CheckpointError, match=r"start\.safetensors, which the run starts from, can not be read"):
        train(None, tmp_path / "two")


def test_rows_of_the_head_go_by_the_names_of_the_classes(place: Path, tmp_path: Path) -> None:
    train(place / "new.yaml", tmp_path / "run", "train.steps=1", source=place / "base")
    run = RunDir(tmp_path / "run")
    begun = load_run_experiment(run).model.start
    assert begun is not None
    old = load_trained(RunDir(place / "base"), lambda _: None).model.state_dict()
    torch.manual_seed(0)
    model = build_model("small_cnn", 4)
    fresh = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    take_start(model, run, begun, ("angle2", "angle0", "other", "angle1"), lambda _: None)
    now = model.state_dict()
    for name in ("fc.weight", "fc.bias"):
        assert torch.equal(now[name][[0, 1, 3]], old[name][[2, 0, 1]])
        assert torch.equal(now[name][2], fresh[name][2])
    assert all(torch.equal(now[name], old[name]) for name in old if not name.startswith("fc."))


@pytest.mark.parametrize(("source", "overrides", "error", "message"), [
    ("nowhere", [], ConfigError, "is neither a run nor a bundle"),
    ("base", ["model.name=resnet18"], ConfigError, "is a small_cnn, and model.name = 'resnet18'"),
    ("base", ["model.weights=x"], ConfigError, "--from and model.weights are both given"),
    ("onnx", [], BundleError, "has no torch format"),
    ("base", ["data.dataset={data}"], ConfigError, "data.new_ratio = 0.25, but all training samples came with"),
])
def test_what_can_not_be_started_from(place: Path, tmp_path: Path, source: str, overrides: list[str],
                                      error: type[DistribError], message: str) -> None:
    if source == "onnx":
        run_export(place / "base", out=tmp_path / "onnx", formats=["onnx"], num_samples=8)
    folder = tmp_path / source if source == "onnx" else place / source
    with pytest.raises(error, match=message):
        train(place / "new.yaml", tmp_path / "run", *(one.format(data=place / "data") for one in overrides),
              source=folder)
    assert not (tmp_path / "run").exists()
