"""`distrib ensemble`: one bundle of several runs, chosen without the test split; k folds that can be killed."""

from __future__ import annotations

import csv
import json
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from distrib.bundle import Bundle, load_bundle
from distrib.cli import app
from distrib.config import load_run_experiment
from distrib.data.folds import fold_view
from distrib.data.frozen import seen_by
from distrib.data.manifest import load_manifest
from distrib.ensemble.members import find_held_out, load_members
from distrib.ensemble.run import run_ensemble
from distrib.ensemble.wishes import make_wishes
from distrib.entry import run_app
from distrib.errors import BundleError, ConfigError, ManifestError, ShardError
from distrib.evaluate import run_evaluate
from distrib.predict import run_predict
from distrib.rundir import RunDir
from distrib.train.run import run_train
from distrib.train.settle import settle
from distrib.trained import load_trained
from distrib.world import World
from tests.conftest import PYTHON, write_dataset
from tests.integration.test_export_predict import extract

Start = Callable[..., "subprocess.Popen[str]"]
EXPERIMENT = """\
data: {{dataset: {dataset}, image_size: 16}}
model: {{name: small_cnn}}
train: {{steps: 8, global_batch: 32, lanes: 2, lr: 0.05, precision: fp32}}
evaluate: {{bootstrap: 0, every_epochs: 100}}
checkpoint: {{every_steps: 2}}
"""


def quiet(_: str) -> None:
    """Says nothing."""


def train(experiment: Path, run: Path, *overrides: str) -> Path:
    run_train(settle(experiment, overrides, run, World()), World(), quiet)
    return run


def combine(runs: list[Path], out: Path, **changes: Any) -> dict[str, Any]:
    wishes: dict[str, Any] = {"split": "val", "combine": "mean", "select": "all", "tta": "none",
                              "calibrate": "temperature", "metric": None, "tolerance": 1e-3, "num_samples": 8,
                              "max_drop": 0.005, "calibration": 20}
    formats = changes.pop("formats", ["onnx"])
    return run_ensemble(runs, make_wishes(out, formats, **wishes | changes), quiet)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """whole, and blind (the same without its test shards); two runs of one size and one of another; two folds of the
    training split. Not to be changed."""
    here = tmp_path_factory.mktemp("ensemble")
    write_dataset(here / "whole", train=90, val=40, test=24, classes=2)
    shutil.copytree(here / "whole", here / "blind")
    for shard in (here / "blind").glob("test-*.tar"):
        shard.unlink()
    (here / "experiment.yaml").write_text(EXPERIMENT.format(dataset=here / "blind"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GLOO_SOCKET_IFNAME", "lo")
        torch.set_num_threads(1)
        train(here / "experiment.yaml", here / "a")
        train(here / "experiment.yaml", here / "b", "seed=1")
        train(here / "experiment.yaml", here / "small", "seed=2", "data.image_size=12")
        for fold in (0, 1):
            train(here / "experiment.yaml", here / f"fold{fold}", "data.folds=2", f"data.fold={fold}", "train.steps=4")
    return here


@pytest.mark.parametrize(("formats", "changes"), [
    (["torch", "onnx", "openvino"], {"select": "greedy", "tta": "flips"}),
    (["torch", "openvino"], {"combine": "rank", "metric": "auroc"}),
    (["onnx"], {"combine": "weights", "metric": "loss"}),
], ids=["greedy", "rank", "weights"])
def test_one_bundle_like_any_other(place: Path, tmp_path: Path, formats: list[str], changes: dict[str, Any]) -> None:
    """Chosen where the test's images do not exist; then judged on them."""
    result = combine([place / "a", place / "b", place / "small"], tmp_path / "bundle", formats=formats, **changes)
    record, bundle = result["ensemble"], load_bundle(tmp_path / "bundle").bundle
    assert set(bundle.parity.formats) == set(formats)
    assert bundle.ensemble is not None
    assert bundle.ensemble.model_dump(mode="json") == record
    assert (record["held_out"], record["num_samples"], bundle.weights.kind) == ("split", 40, "ensemble")
    assert bundle.preprocessing.image_size == 16
    assert sum(member["weight"] for member in record["members"]) == pytest.approx(1)
    assert all(isinstance(member["adds"], float) or member["weight"] == 1 for member in record["members"])
    assert bool(record["path"]) == (changes.get("select") == "greedy")
    if record["path"]:
        assert record["path"][-1]["value"] >= max(member["alone"] for member in record["members"])
    val = run_evaluate(tmp_path / "bundle", split="val", bootstrap=0)
    assert val[record["metric"]] == pytest.approx(bundle.metrics["val"][record["metric"]], abs=0.051)
    assert val["loss"] == pytest.approx(bundle.metrics["val"]["loss"], abs=1e-4)
    assert bundle.threshold is not None
    assert bundle.threshold.num_samples == 40

    with pytest.raises(ShardError):
        run_evaluate(tmp_path / "bundle", bootstrap=0)  # blind
    for runtime in formats:
        report = run_evaluate(tmp_path / "bundle", data=place / "whole", bootstrap=0, runtime=runtime,
                              predictions=tmp_path / "p.csv")
        assert report["num_samples"] == 24
        with (tmp_path / "p.csv").open(encoding="utf-8") as file:
            rows = {row["key"]: row for row in csv.DictReader(file)}
        images = extract(place / "whole", tmp_path / f"images-{runtime}")
        for answer in run_predict(tmp_path / "bundle", [images], runtime=runtime):
            row = rows[Path(answer["image"]).stem]
            assert answer["label"] == row["label"]
            assert answer["probabilities"] == {name: float(row[f"p_{name}"]) for name in bundle.classes}


def test_the_mean_is_the_mean_of_the_members(place: Path, tmp_path: Path) -> None:
    combine([place / "a", place / "b"], tmp_path / "bundle", calibrate="none")
    found = []
    for target in (tmp_path / "bundle", place / "a", place / "b"):
        run_evaluate(target, data=place / "whole", bootstrap=0, predictions=tmp_path / "p.csv")
        with (tmp_path / "p.csv").open(encoding="utf-8") as file:
            found.append(np.array([float(row["p_angle1"]) for row in csv.DictReader(file)]))
    np.testing.assert_allclose(found[0], (found[1] + found[2]) / 2, atol=1e-5)


def test_folds_are_cut_as_the_experiment_says(place: Path, tmp_path: Path) -> None:
    members = load_members([place / "fold0", place / "fold1"], None, quiet)
    held_out = find_held_out(members)
    assert held_out.kind == "out_of_fold"
    with pytest.raises(ManifestError, match="no 'test' split"):
        held_out.manifest.samples("test")
    result = combine([place / "fold0", place / "fold1"], tmp_path / "bundle")
    record = result["ensemble"]
    assert (record["held_out"], record["num_samples"]) == ("out_of_fold", 130)
    assert [(member["fold"], member["adds"], member["weight"]) for member in record["members"]] \
        == [(0, None, 0.5), (1, None, 0.5)]
    own = [run_evaluate(place / f"fold{fold}", split="val", bootstrap=0) for fold in (0, 1)]
    assert sum(one["num_samples"] for one in own) == 130
    right = sum(one["accuracy"] * one["num_samples"] for one in own if one["threshold"] is None)
    plain = sum(one["by_largest_probability"]["accuracy"] * one["num_samples"] for one in own if one["threshold"])
    assert record["value"] == pytest.approx((right + plain) / 130)  # a temperature changes no label
    told: list[str] = []
    run_evaluate(tmp_path / "bundle", split="val", bootstrap=0, tell=told.append)
    assert any("trained on these samples" in line for line in told)
    manifest = load_manifest(place / "blind")
    assert len(seen_by(manifest, "val", 1).images) == 90
    assert len(seen_by(manifest, "val", 1, in_folds=True).images) == 130


def test_what_can_not_be_combined(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b, fold = str(place / "a"), str(place / "b"), str(place / "fold0")
    folds = [str(place / "experiment.yaml"), "--folds", "2", "--run", str(tmp_path / "folds")]
    out = ["--out", str(tmp_path / "new")]
    for words, says in (
        ([a, b, "--split", "test"], "an ensemble is never chosen on the test split"),
        ([a, b, "--split", "train"], "is no split to choose on"),
        ([a, b, "--combine", "median"], "--combine 'median' is unknown"),
        ([a], "alone is no ensemble"),
        ([a, a], "hold the same weights"),
        ([a, fold], "validated on different samples"),
        ([fold, str(place / "fold1"), "--select", "greedy"], "--select greedy needs samples that no member"),
        ([fold, str(place / "fold1"), "--format", "onnx,openvino-int8"], "openvino-int8 must be judged on samples"),
        ([a, b, "--set", "seed=3"], "--set is for --folds"),
        ([str(place / "experiment.yaml"), "--folds", "1"], "--folds 1 is below 2"),
        ([str(place / "experiment.yaml"), "--folds", "99"], "too few groups"),
        ([*folds, "--select", "greedy"], "--select greedy needs samples that no member"),
        ([*folds, "--format", "onnx,openvino-int8"], "openvino-int8 must be judged on samples"),
        ([a, str(place / "blind")], "is no run"),
    ):
        assert run_app(app, "distrib", ["ensemble", *words, *out]) == 2, words
        assert says in capsys.readouterr().err, words
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ConfigError, match=r"data\.fold does not say which"):
        settle(place / "experiment.yaml", ["data.folds=3"], tmp_path / "run", World())


def test_one_that_differs_is_named(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = tmp_path / "three.yaml"
    experiment.write_text(EXPERIMENT.format(dataset=write_dataset(tmp_path / "three", val=30)))
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    three = [train(experiment, tmp_path / name, "train.steps=1", f"seed={name}") for name in ("1", "2")]
    with pytest.raises(ConfigError, match=r"differ in their classes: .*angle2"):
        combine([place / "a", three[0]], tmp_path / "new")
    with pytest.raises(ConfigError, match=r"--combine rank, and there are 3 classes"):
        combine(three, tmp_path / "new", combine="rank")
    folds = tmp_path / "folds"
    assert run_app(app, "distrib", ["ensemble", str(experiment), "--folds", "2", "--combine", "rank", "--run",
                                    str(folds), "--out", str(tmp_path / "new")]) == 2
    assert not folds.exists()  # told before anything is trained
    combine(three, tmp_path / "bundle", formats=["torch"])
    with pytest.raises(BundleError, match=r"is an ensemble of 2 members"):
        settle(experiment, [], tmp_path / "warm", World(), tmp_path / "bundle")
    document = load_bundle(tmp_path / "bundle").bundle
    assert b'"ensemble":' not in Bundle.to_bytes(document.model_copy(update={"ensemble": None}))


def test_folds_go_on_where_they_were_killed(place: Path, tmp_path: Path, start: Start) -> None:
    runs = tmp_path / "runs"
    command = [PYTHON, "-m", "distrib", "ensemble", place / "experiment.yaml", "--folds", "2", "--run", runs, "--out",
               tmp_path / "bundle", "--format", "onnx", "--samples", "8", "--json"]
    first = start(*command)
    until = time.monotonic() + 200
    while not any((runs / "fold-1/checkpoints").glob("step-*")):
        assert first.poll() is None, first.communicate()[1]
        assert time.monotonic() < until
        time.sleep(0.02)
    first.send_signal(signal.SIGKILL)
    first.wait()
    before = (runs / "fold-0/result.json").stat().st_mtime_ns
    assert not (tmp_path / "bundle").exists()
    again = start(*command)
    out, err = again.communicate(timeout=250)
    assert again.returncode == 0, err
    assert "fold 0 of 2 is trained already" in err
    assert (runs / "fold-0/result.json").stat().st_mtime_ns == before
    members = json.loads(out)["ensemble"]["members"]
    assert [(member["fold"], member["run"]) for member in members] == [(i, str(runs / f"fold-{i}")) for i in range(2)]
    data = load_run_experiment(RunDir(runs / "fold-1")).data
    assert (data.folds, data.fold) == (2, 1)
    undisturbed = train(place / "experiment.yaml", tmp_path / "alone", "data.folds=2", "data.fold=1", "seed=1")
    assert load_trained(RunDir(undisturbed), quiet).weights_sha256 == members[1]["weights_sha256"]
    val = fold_view(load_manifest(place / "blind"), data).samples("val")
    assert not set(val.groups) & set(fold_view(load_manifest(place / "blind"), data).samples("train").groups)


def test_several_ranks_are_refused(place: Path, tmp_path: Path, start: Start) -> None:
    process = start(PYTHON, "-m", "distrib", "ensemble", place / "a", place / "b", "--out", tmp_path / "new", RANK="0",
                    WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT="1")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "was started as 2 ranks" in err
    assert "launch run ... -- distrib train" in err
