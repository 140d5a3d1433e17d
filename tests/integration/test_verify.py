"""`distrib verify` on real runs: the same, of another seed, with weights that somebody touched, and replayed."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from distrib.checkpoint import read_checkpoint, write_checkpoint
from distrib.cli import app
from distrib.entry import run_app
from distrib.rundir import RunDir

REPOSITORY = Path(__file__).resolve().parents[2]
Start = Callable[..., "subprocess.Popen[str]"]
LIMIT_S = 120


def begin(start: Start, *words: str | Path) -> subprocess.Popen[str]:
    return start(sys.executable, "-m", "distrib", "train", *words)


def finish(*trainings: subprocess.Popen[str]) -> None:
    for process in trainings:
        _, err = process.communicate(timeout=LIMIT_S)
        assert process.returncode == 0, err


def distrib_verify(*words: str | Path) -> int:
    """The command in this process, which has torch already."""
    return run_app(app, "distrib", ["verify", *map(str, words)])


def test_runs_and_replays(start: Start, experiment: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
                          monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    whole, kept, seed, nudged = (tmp_path / name for name in ("whole", "kept", "seed", "nudged"))
    often = ("--set", "checkpoint.every_steps=4", "--set", "checkpoint.keep_last=9", "--set", "train.ema_decay=0.9")
    finish(begin(start, experiment, *often, "--run", whole))

    def verify(*words: str | Path, code: int = 0) -> dict[str, Any]:
        assert distrib_verify(*words, "--json") == code
        verdict: dict[str, Any] = json.loads(capsys.readouterr().out)
        assert verdict["same"] == (code == 0)
        return verdict

    # A bit of the weights is flipped between two starts: their checkpoint is whole, and no record differs.
    shutil.copytree(whole, nudged)
    for path in (nudged / "checkpoints").iterdir():
        if int(path.name.removeprefix("step-")) > 6:
            shutil.rmtree(path)
    state = read_checkpoint(RunDir(nudged).checkpoint(6))
    weight = state.model["fc.weight"].clone()
    weight[0, 0] *= 1 + 2**-20
    write_checkpoint(RunDir(nudged), replace(state, model=state.model | {"fc.weight": weight}))
    trainings = begin(start, "--run", nudged), begin(start, experiment, *often, "--set", "seed=4", "--run", seed)

    verdict = verify(whole, "--replay", "--steps", "9", "--keep", kept)
    assert (verdict["weights_step"], verdict["losses_compared"], verdict["compared_step"]) == (8, 9, 9)
    assert verdict["compared_parts"] == ["model", "optimizer", "ema"]
    settings = [json.loads((run / "experiment.json").read_text())["experiment"]["checkpoint"] for run in (whole, kept)]
    assert settings[0] != settings[1]
    verdict = verify(whole, kept)  # as any two runs, of which the one was stopped
    assert (verdict["evidence"], verdict["differences"]) == ("weights", [])
    assert verdict["b"]["last_step"] == verdict["compared_step"] == verdict["losses_compared"] >= 9

    finish(*trainings)
    verdict = verify(whole, nudged, code=1)
    assert (verdict["first_different_step"], verdict["evidence"]) == (6, "checkpoint")
    assert verdict["first_different_checkpoint"] == {"step": 6, "parts": ["model"]}
    assert verdict["last_same_weights_step"] == 4
    assert verdict["first_different_loss"]["step"] > 6  # so small a change may take a step to show in a loss
    assert (verdict["differences"], verdict["explained"]) == ([], False)
    assert "no recorded difference" in verdict["reason"]

    assert distrib_verify(whole, seed) == 1
    out = capsys.readouterr().out
    assert "not the same model from step 1 on" in out
    assert "seed" in out

    bad_input(whole, seed, tmp_path, capsys)


def bad_input(run: Path, other: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One error line each, and exit code 2; of the runs above, the other of which it damages."""
    kept = sorted(path.name for path in (tmp_path / "kept").rglob("*"))
    flipped = RunDir(other).checkpoint(12) / "model.safetensors"
    content = bytearray(flipped.read_bytes())
    content[-1] ^= 1
    flipped.write_bytes(content)
    for step in (4, 6, 8):
        shutil.rmtree(RunDir(other).checkpoint(step))
    shutil.copy(RunDir(run).metrics, RunDir(other).metrics)
    for words, says in (
        ((run, tmp_path), "is no run"),
        ((run, run), "the same folder"),
        ((run, "--replay", "--keep", tmp_path / "kept"), "exists already"),
        ((run, "--replay", "--data", tmp_path), "dataset.json does not exist"),
        ((run, other), "is damaged"),
    ):
        assert distrib_verify(*words) == 2
        out, err = capsys.readouterr()
        assert not out
        assert says in err
        assert [line for line in err.splitlines() if line.startswith("error: ")] == err.splitlines()[-1:]
        assert "Traceback" not in err
    assert sorted(path.name for path in (tmp_path / "kept").rglob("*")) == kept
