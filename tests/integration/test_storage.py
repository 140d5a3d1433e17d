"""Real trainings whose storage fills or goes away: they go on, and the model is that of an undisturbed run."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from distrib.checkpoint import checkpoint_paths, newest_checkpoint
from distrib.rundir import RunDir
from tests.rig.disk import SmallDisk, small_disk

Start = Callable[..., "subprocess.Popen[str]"]
LIMIT_S = 240
STEPS = 80
LONG = ("--set", f"train.steps={STEPS}", "--set", "evaluate.every_epochs=1000", "--set", "checkpoint.every_steps=4",
        "--set", "watch.every_s=0", "--json")


def begin(start: Start, disk: SmallDisk, experiment: Path) -> subprocess.Popen[str]:
    """`distrib train` into a run folder on the disk."""
    return start(*disk.enter, sys.executable, "-m", "distrib", "train", experiment, *LONG, "--run", disk.inside / "run")


def read_until(process: subprocess.Popen[str], words: str) -> str:
    """What a process says up to and with the line that holds these words."""
    assert process.stderr is not None
    said = ""
    for line in process.stderr:
        said += line
        if words in line:
            return said
    pytest.fail(f"never said {words!r}:\n{said}")


def test_a_disk_that_fills_and_is_freed_costs_nothing_of_the_model(start: Start, experiment: Path,
                                                                   tmp_path: Path) -> None:
    undisturbed = start(sys.executable, "-m", "distrib", "train", experiment, *LONG, "--run", tmp_path / "whole")
    with small_disk(tmp_path / "disk", "8m") as disk:
        process = begin(start, disk, experiment)
        run = RunDir(disk.path / "run")
        try:
            said = read_until(process, "step 1/")
            filler = disk.fill()
            while not ("metrics.jsonl could not" in said and "warning: the checkpoint of" in said):
                said += read_until(process, "could not be written: No space left on device")
            filler.unlink()
            said += read_until(process, "checkpoints can be written again")
            out, rest = process.communicate(timeout=LIMIT_S)
        finally:
            if process.poll() is None:
                process.kill()
        said += rest
        assert process.returncode == 0, said
        whole_out, whole_said = undisturbed.communicate(timeout=LIMIT_S)
        assert undisturbed.returncode == 0, whole_said
        result, whole = json.loads(out), json.loads(whole_out)
        assert (result["step"], result["finished"]) == (STEPS, True)
        assert result["weights_sha256"] == whole["weights_sha256"]
        found = newest_checkpoint(run, pytest.fail)
        assert found is not None
        assert found.step == STEPS
        assert [path.name for path in checkpoint_paths(run)] == [f"step-{step:09d}" for step in (STEPS, STEPS - 4)]
        lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
        told = [line["step"] for line in lines if line["event"] == "step"]
        assert told == sorted(set(told))
        missing = sum(int(number) for number in re.findall(
            r"metrics\.jsonl can be written again; (\d+) records?|(?<=warning: )(\d+) records? (?:is|are) missing at "
            r"the end of \S*metrics\.jsonl", said)[0] if number)
        assert len(told) + missing == STEPS
        assert "Traceback" not in said
        assert said.count("warning: the checkpoint of step") == 1


@pytest.mark.soak
def test_a_run_folder_that_goes_away_ends_the_run_with_what_is_kept(start: Start, experiment: Path,
                                                                    tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "8m") as disk:
        process = begin(start, disk, experiment)
        run = RunDir(disk.path / "run")
        try:
            said = read_until(process, "step 1/")
            while not checkpoint_paths(run):
                assert process.poll() is None
            away = run.root.rename(disk.path / "away")
            out, rest = process.communicate(timeout=LIMIT_S)
        finally:
            if process.poll() is None:
                process.kill()
        said += rest
        assert process.returncode == 2, said
        assert out == ""
        last = said.splitlines()[-1]
        assert last.startswith(f"error: the last checkpoint, of step {STEPS}, is not on the disk: the run's folder")
        assert "is gone, removed or unmounted" in last
        assert "Traceback" not in said
        assert not run.root.exists()
        away.rename(run.root)
        found = newest_checkpoint(run, pytest.fail)
        assert found is not None
        assert f"the newest whole checkpoint is that of step {found.step}" not in last  # it was not to be seen
