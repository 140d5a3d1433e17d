from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distrib.config import Experiment, TrainConfig, load_experiment, load_run_experiment
from distrib.durable import seal
from distrib.errors import CheckpointError, ConfigError
from distrib.rundir import RunDir

LEAST = "data: {dataset: images}\nmodel: {name: small_cnn}\n"


@pytest.fixture
def least(tmp_path: Path) -> Path:
    path = tmp_path / "experiment.yaml"
    path.write_text(LEAST)
    return path


def refusal(path: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_experiment(path, overrides)
    assert str(path) in caught.value.fact or "--set" in caught.value.fact
    return caught.value.fact


def test_the_shortest_experiment_and_its_overrides(least: Path) -> None:
    experiment = load_experiment(least)
    assert experiment.data.dataset == Path("images")
    assert experiment.train == TrainConfig()
    changed = load_experiment(least, ["train.lr=1e-3", "data.augment.hflip=false", "train.early_stopping.patience=3",
                                      "train.class_weights=[1, 2.5]", "train.class_weights=balanced", "seed=7",
                                      "model.freeze=[layer1.*]"])
    assert changed.train.lr == 1e-3
    assert not changed.data.augment.hflip
    assert changed.train.early_stopping is not None
    assert changed.train.early_stopping.patience == 3
    assert changed.train.class_weights == "balanced"
    assert changed.model.freeze == ("layer1.*",)
    assert changed.seed == 7
    assert changed.data.image_size == experiment.data.image_size


@pytest.mark.parametrize(("override", "message"), [
    ("train.lrr=1", "unknown key 'train.lrr' (did you mean 'lr'?)"),
    ("data.augment.rotate_degree=1", "(did you mean 'rotate_degrees'?)"),
    ("trian={lr: 1}", "unknown key 'trian' (did you mean 'train'?)"),
    ("train.early_stopping={patiense: 2}", "(did you mean 'patience'?)"),
    ("train.lr=.nan", "train.lr = nan"),
    ("train.lr=.inf", "train.lr = inf"),
    ("train.lr=-.inf", "train.lr = -inf"),
    ("train.lr=0", "train.lr = 0"),
    ("train.lr=high", "train.lr = 'high'"),
    ("data.mean=[.nan, 0, 0]", "data.mean.0 = nan"),
    ("data.mean=[0.5]", "data.mean"),
    ("data.std=[0.2, 0, 0.2]", "must be above 0"),
    ("train.epochs=0", "train.epochs = 0"),
    ("train.epochs=2.5", "train.epochs = 2.5"),
    ("train.lanes=0", "train.lanes = 0"),
    ("train.momentum=1", "train.momentum = 1"),
    ("train.optimizer=adam", "train.optimizer = 'adam'"),
    ("train.reduction=exact8", "train.reduction = 'exact8'"),
    ("train.compress=bf16", "train.compress = bf16 is for train.reduction = fast, not exact"),
    ("train={compress: powersgd, reduction: exact16}", "is for train.reduction = fast, not exact16"),
    ("train={local_steps: 4, reduction: fast}", "train.local_steps sums exactly"),
    ("train={lanes: 512, global_batch: 512, reduction: exact16}", "fewer than 6 bits would be left"),
    ("train={lanes: 32, global_batch: 64, reduction: exact10}", "fewer than 4 bits would be left"),
    ("train.local_steps=0", "train.local_steps = 0"),
    ("train.outer_momentum=1", "train.outer_momentum = 1"),
    ("train.powersgd_start=1", "train.powersgd_start = 1"),
    ("train.class_weights=[1, 0]", "train.class_weights"),
    ("data.image_size=7", "data.image_size = 7"),
    ("data.augment.rotate_degrees=181", "data.augment.rotate_degrees = 181"),
    ("data.dataset=null", "data.dataset = None"),
    ('data.dataset="a\\0b"', "can not be a path"),
    ('data.dataset="\\udc80"', "can not be a path"),
    ('model.weights="a\\0b"', "can not be a path"),
    ("comm.backend=smoke", "comm.backend = 'smoke'"),
    ("seed=-1", "seed = -1"),
    (f"seed={1 << 63}", "seed = "),
    ("train.lr.x=1", "seed"),
])
def test_wrong_values_are_named(least: Path, override: str, message: str) -> None:
    if override == "train.lr.x=1":  # a value where a section would be is read from the file, not the schema
        least.write_text(LEAST + "train: {lr: 1}\n")
        message = "'lr' is a value, not a section"
    assert message in refusal(least, override)


@given(st.integers(1, 40), st.integers(1, 200))
def test_lanes_must_divide_the_global_batch(lanes: int, global_batch: int) -> None:
    if global_batch % lanes:
        with pytest.raises(ValueError, match=rf"train.lanes \({lanes}\) must divide train.global_batch"):
            TrainConfig(lanes=lanes, global_batch=global_batch)
    else:
        assert TrainConfig(lanes=lanes, global_batch=global_batch).lane_batch * lanes == global_batch


def test_lanes_that_do_not_divide_are_named_in_one_line(least: Path) -> None:
    fact = refusal(least, "train.lanes=3", "train.global_batch=16")
    assert "train.lanes (3) must divide train.global_batch (16)" in fact
    assert "\n" not in fact


def written(run: RunDir, experiment: Experiment) -> bytes:
    run.root.mkdir(exist_ok=True)
    run.experiment.write_bytes(experiment.to_bytes())
    return run.experiment.read_bytes()


def test_a_run_keeps_the_whole_experiment(least: Path, tmp_path: Path) -> None:
    experiment = load_experiment(least, ["train.lr=1e-3", "train.class_weights=[1, 2]", "data.eval_crop=0.875",
                                         "train.early_stopping={patience: 2, min_delta: 1e-4}", "seed=12345678901"])
    run = RunDir(tmp_path / "run")
    written(run, experiment)
    assert load_run_experiment(run) == experiment
    assert load_run_experiment(run).to_bytes() == experiment.to_bytes()


def test_a_run_that_can_not_be_read_is_named(least: Path, tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    with pytest.raises(CheckpointError, match="is no run"):
        load_run_experiment(run)
    raw = bytearray(written(run, load_experiment(least)))
    raw[raw.index(b"small_cnn")] ^= 1
    run.experiment.write_bytes(raw)
    with pytest.raises(CheckpointError, match=r"experiment\.json is damaged"):
        load_run_experiment(run)
    run.experiment.write_bytes(seal("distrib-experiment/1", {"other": 1}))
    with pytest.raises(CheckpointError, match="is damaged"):
        load_run_experiment(run)
    os.remove(run.experiment)
    run.experiment.mkdir()
    with pytest.raises(CheckpointError, match="Is a directory"):
        load_run_experiment(run)


def test_an_older_experiment_with_a_key_that_is_gone_is_named(least: Path, tmp_path: Path) -> None:
    body: dict[str, Any] = {"experiment": load_experiment(least).model_dump(mode="json") | {"gone": 1}}
    run = RunDir(tmp_path / "run")
    run.root.mkdir()
    run.experiment.write_bytes(seal("distrib-experiment/1", body))
    with pytest.raises(ConfigError, match="unknown key 'gone'"):
        load_run_experiment(run)
