"""Which experiment a run goes on with: its own; a file may differ only in what does not change the model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from distrib.comm.group import Group
from distrib.config import Experiment, load_experiment
from distrib.errors import ConfigError
from distrib.rundir import RunDir
from distrib.train.resume import broadcast_tensors
from distrib.train.settle import settle_experiment


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return RunDir(tmp_path / "run")


def begin(run: RunDir, path: Path, *overrides: str) -> Experiment:
    experiment = settle_experiment(run, path, overrides)
    run.root.mkdir()
    run.experiment.write_bytes(experiment.to_bytes())
    return experiment


def test_a_new_run_takes_the_file(run: RunDir, experiment: Path) -> None:
    settled = settle_experiment(run, experiment, ["train.lr=1e-3"])
    assert settled == load_experiment(experiment, ["train.lr=1e-3"])
    assert settled.train.lr == 1e-3
    assert not run.root.exists()


def test_nothing_to_go_on_with(run: RunDir) -> None:
    with pytest.raises(ConfigError, match="is no run to go on with"):
        settle_experiment(run, None, [])


def test_a_run_goes_on_with_or_without_its_file(run: RunDir, experiment: Path) -> None:
    begun = begin(run, experiment, "train.lr=1e-3", "model.freeze=[stem.*]", "train.class_weights=[1, 2, 3]")
    assert settle_experiment(run, None, []) == begun
    same = ["train.lr=0.001", "model.freeze=[stem.*]", "train.class_weights=[1, 2, 3]"]
    assert settle_experiment(run, experiment, same) == begun


@pytest.mark.parametrize(("overrides", "named"), [
    (["train.lr=0.2"], "train.lr"),
    (["seed=4"], "seed"),
    (["data.augment.hflip=true"], "data.augment.hflip"),
    (["train.epochs=3"], "train.epochs"),
    (["train.steps=30"], "train.steps"),
    (["train.lanes=4"], "train.lanes"),
    (["train.threads=2"], "train.threads"),
    (["train.reduction=fast"], "train.reduction"),
    (["train.local_steps=4"], "train.local_steps"),
    (["model.name=resnet18"], "model.name"),
    (["evaluate.metric=loss"], "evaluate.metric"),
    (["train.early_stopping.patience=3"], "train.early_stopping"),
    (["data.image_size=24", "train.lr=0.2", "comm.timeout_s=9"], "data.image_size, train.lr"),
])
@pytest.mark.parametrize("with_file", [True, False])
def test_a_difference_that_changes_the_model_is_refused_by_name(run: RunDir, experiment: Path, overrides: list[str],
                                                               named: str, with_file: bool) -> None:
    begin(run, experiment)
    with pytest.raises(ConfigError) as caught:
        settle_experiment(run, experiment if with_file else None, overrides)
    assert caught.value.fact == f"{run.root} was begun with another {named}"
    # Weights of another model would not fit.
    assert (f"--from {run.root} to start with its weights" in caught.value.remedy) is (named != "model.name")


def test_what_does_not_change_the_model_may_change(run: RunDir, experiment: Path) -> None:
    begin(run, experiment)
    settled = settle_experiment(run, experiment, [
        "data.dataset=/elsewhere", "data.decode_threads=3", "data.prefetch_steps=5", "comm.timeout_s=9",
        "checkpoint.every_steps=7", "checkpoint.keep_last=4", "train.ledger=true", "evaluate.bootstrap=9",
        "model.weights=/gone.safetensors"])
    assert settled.data.dataset == Path("/elsewhere")
    assert settled.data.decode_threads == 3
    assert settled.checkpoint.keep_last == 4
    assert settled.train.ledger


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_automatic_precision_stays_what_it_was(run: RunDir, experiment: Path, precision: str) -> None:
    # The run may go on where the processor would choose otherwise.
    begun = begin(run, experiment, f"train.precision={precision}")
    assert settle_experiment(run, experiment, ["train.precision=auto"]) == begun
    other = "bf16" if precision == "fp32" else "fp32"
    with pytest.raises(ConfigError, match=r"another train\.precision"):
        settle_experiment(run, experiment, [f"train.precision={other}"])


def test_wrong_keys_are_named_when_going_on_too(run: RunDir, experiment: Path) -> None:
    begin(run, experiment)
    with pytest.raises(ConfigError, match=r"did you mean 'lr'"):
        settle_experiment(run, None, ["train.lrr=1"])


def test_tensors_arrive_by_name_type_and_shape(group: Group) -> None:
    sent = {"b": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last), "a": torch.tensor(7),
            "c": torch.randn(3).bfloat16(), "empty": torch.zeros(0, 2)}
    received = broadcast_tensors(group, sent)
    assert list(received) == list(sent)
    for name, tensor in sent.items():
        assert torch.equal(received[name], tensor)
        assert received[name].dtype == tensor.dtype
