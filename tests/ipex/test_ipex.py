"""Training with torch 2.8 and IPEX, in the environment that `make test-ipex` makes: the same promises hold there."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

Start = Callable[..., "subprocess.Popen[str]"]
LIMIT_S = 240

pytestmark = pytest.mark.ipex

STEPS = 40
OPTIONS = ("--set", f"train.steps={STEPS}", "--set", "train.lr=0.01", "--set", "train.ema_decay=0.9",
           "--set", "evaluate.every_epochs=10")


def start_world(start: Start, size: int, *arguments: str | Path) -> list[subprocess.Popen[str]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    return [start(sys.executable, "-m", "distrib", "train", *arguments, "--json", RANK=str(rank), WORLD_SIZE=str(size),
                  LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE=str(size), MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
            for rank in range(size)]


def train(start: Start, size: int, *arguments: str | Path) -> dict[str, Any]:
    ranks = start_world(start, size, *arguments)
    outputs = [rank.communicate(timeout=LIMIT_S) for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0] * size, "\n".join(err for _, err in outputs)
    assert all(not out for out, _ in outputs[1:])
    result: dict[str, Any] = json.loads(outputs[0][0])  # nothing but the result is on stdout
    assert result["finished"]
    assert result["step"] == STEPS
    return result


def losses(run: Path) -> list[float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if line["event"] == "step"]


def tensors(run: Path, name: str) -> dict[str, torch.Tensor]:
    return load_file(sorted((run / "checkpoints").iterdir())[-1] / f"{name}.safetensors")


def test_this_is_torch_2_8() -> None:
    assert torch.__version__.startswith("2.8."), "run make test-ipex"


@pytest.mark.parametrize("ipex", [False, True], ids=["plain", "ipex"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_every_world_size_trains_the_same_model(start: Start, experiment: Path, tmp_path: Path, ipex: bool,
                                                precision: str, optimizer: str) -> None:
    arguments = (experiment, *OPTIONS, "--set", f"train.ipex={str(ipex).lower()}", "--set",
                 f"train.precision={precision}", "--set", f"train.optimizer={optimizer}")
    one, two = (train(start, size, *arguments, "--run", tmp_path / str(size)) for size in (1, 2))
    assert one["weights_sha256"] == two["weights_sha256"]
    assert one["ema_sha256"] == two["ema_sha256"]
    assert one["best_score"] == two["best_score"]
    assert losses(tmp_path / "1") == losses(tmp_path / "2")
    assert losses(tmp_path / "1")[-1] < losses(tmp_path / "1")[0]
    first = json.loads((tmp_path / "2" / "environment.jsonl").read_text().splitlines()[0])
    assert first["packages"].get("intel-extension-for-pytorch", "").startswith("2.8.") == ipex


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_checkpoint_is_like_any_other(start: Start, experiment: Path, tmp_path: Path, precision: str) -> None:
    for name in ("false", "true"):
        train(start, 1, experiment, *OPTIONS, "--set", f"train.precision={precision}", "--set", f"train.ipex={name}",
              "--run", tmp_path / name)
    for part in ("model", "optimizer", "ema"):
        plain, ours = tensors(tmp_path / "false", part), tensors(tmp_path / "true", part)
        assert plain.keys() == ours.keys()
        for key in plain:
            assert plain[key].shape == ours[key].shape
            assert plain[key].dtype == ours[key].dtype
    # The kernels differ, the computation does not: the losses part slowly.
    near = {"fp32": 1e-4, "bf16": 5e-2}[precision]
    assert losses(tmp_path / "true")[:3] == pytest.approx(losses(tmp_path / "false")[:3], rel=near)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_run_that_was_killed_goes_on_to_the_same_model(start: Start, experiment: Path, tmp_path: Path,
                                                         precision: str, optimizer: str) -> None:
    arguments = (experiment, *OPTIONS, "--set", "train.ipex=true", "--set", f"train.precision={precision}", "--set",
                 f"train.optimizer={optimizer}", "--set", "checkpoint.every_steps=7")
    whole = train(start, 2, *arguments, "--run", tmp_path / "whole")
    run = tmp_path / "torn"
    ranks = start_world(start, 1, *arguments, "--run", run)
    deadline = time.monotonic() + LIMIT_S
    while not list(run.glob("checkpoints/step-*14")):
        assert ranks[0].poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.kill(ranks[0].pid, signal.SIGKILL)
    ranks[0].communicate()
    resumed = train(start, 2, *arguments, "--run", run)
    assert resumed["weights_sha256"] == whole["weights_sha256"]
    assert resumed["ema_sha256"] == whole["ema_sha256"]
    starts = (run / "environment.jsonl").read_text().splitlines()
    assert json.loads(starts[1])["step"] >= 14


def test_a_run_does_not_change_over_to_ipex(start: Start, experiment: Path, tmp_path: Path) -> None:
    train(start, 1, experiment, *OPTIONS, "--run", tmp_path / "run")
    (rank,) = start_world(start, 1, experiment, *OPTIONS, "--set", "train.ipex=true", "--run", tmp_path / "run")
    _, err = rank.communicate(timeout=LIMIT_S)
    assert rank.returncode == 2
    assert "was begun with another train.ipex" in err


def test_what_was_trained_with_ipex_is_judged_and_exported_without(start: Start, experiment: Path,
                                                                   tmp_path: Path) -> None:
    train(start, 1, experiment, *OPTIONS, "--set", "train.ipex=true", "--run", tmp_path / "run")
    export = ["export", tmp_path / "run", "--out", tmp_path / "bundle", "--json"]
    process = start(sys.executable, "-m", "distrib", *export)
    _, err = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 2
    assert "writes the weights of its archives as a pickle" in err  # torch 2.8 does
    assert not (tmp_path / "bundle").exists()
    for command in (["evaluate", tmp_path / "run", "--json"], [*export, "--format", "onnx,openvino"]):
        process = start(sys.executable, "-m", "distrib", *command)
        out, err = process.communicate(timeout=LIMIT_S)
        assert process.returncode == 0, err
        json.loads(out)
