"""The examples as their read-me files tell them: generated pictures, then the commands word for word."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
_SMALL = ("--set", "model.name=small_cnn", "--set", "data.image_size=32", "--set", "train.epochs=1",
          "--set", "train.global_batch=16", "--set", "train.precision=fp32", "--set", "evaluate.bootstrap=20")
_TIME_LIMIT_S = 150


def readme_command(*words: str) -> list[str]:
    """The one command of melanoma/README.md that has all these words."""
    lines = (EXAMPLES / "melanoma" / "README.md").read_text(encoding="utf-8").splitlines()
    found = [line for line in lines if line.startswith(words[0]) and set(words[1:]) <= set(line.split())]
    assert len(found) == 1, found
    return shlex.split(found[0])


def run(folder: Path, argv: list[str]) -> str:
    """Run a command in ``folder`` and return its stdout."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(EXAMPLES.parent)}
    if argv[0] == "distrib":
        argv = [sys.executable, "-m", *argv]
    done = subprocess.run(argv, cwd=folder, env=environment, capture_output=True, text=True, timeout=_TIME_LIMIT_S,
                          check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def run_json(folder: Path, argv: list[str]) -> Any:
    return json.loads(run(folder, [*argv, "--json"]))


def generate(folder: Path, layout: str, out: str, *options: str) -> None:
    run(folder, [sys.executable, str(EXAMPLES / "melanoma" / "lesions.py"), layout, out, *options])


def assert_no_group_in_two_splits(dataset: Path) -> None:
    manifest = json.loads((dataset / "dataset.json").read_text(encoding="utf-8"))
    groups: dict[str, set[str]] = {}
    for shard in manifest["shards"]:
        groups.setdefault(shard["split"], set()).update(shard["index"]["group"])
    assert set(groups) == {"train", "val", "test"}
    assert sum(map(len, groups.values())) == len(set().union(*groups.values()))


def train_and_evaluate(folder: Path, experiment: str, dataset: str, num_test: int) -> dict[str, Any]:
    trained = run_json(folder, ["distrib", "train", str(EXAMPLES / "melanoma" / f"{experiment}.yaml"), "--run", "run",
                                "--set", f"data.dataset={dataset}", *_SMALL])
    assert trained["finished"]
    report: dict[str, Any] = run_json(folder, ["distrib", "evaluate", "run", "--split", "test"])
    assert report["num_samples"] == num_test
    return report


@pytest.fixture(scope="module")
def ham10000(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with generated pictures in HAM10000: enough for three lesions of the rarest diagnosis."""
    folder = tmp_path_factory.mktemp("ham")
    generate(folder, "ham10000", "HAM10000", "--images", "450", "--quality", "70")
    return folder


@pytest.mark.timeout(_TIME_LIMIT_S * 3)
def test_ham10000_from_pictures_to_a_score(ham10000: Path) -> None:
    report = run_json(ham10000, readme_command("distrib prepare", "HAM10000", "dx"))
    assert report["samples"] == 450
    assert report["classes"] == ["akiec", "bcc", "bkl", "df", "mel", "nv", "vasc"]
    assert report["torn_groups"] == []
    assert_no_group_in_two_splits(ham10000 / "ham10000-dataset")
    num_test = report["splits"]["test"]["samples"]
    scores = train_and_evaluate(ham10000, "ham10000", "ham10000-dataset", num_test)
    assert set(scores["per_class"]) == set(report["classes"])


@pytest.mark.timeout(_TIME_LIMIT_S * 3)
@pytest.mark.soak
def test_isic2020_from_pictures_to_a_score(tmp_path: Path) -> None:
    generate(tmp_path, "isic2020", "ISIC2020", "--images", "250", "--max-side", "96", "--seed", "1")
    report = run_json(tmp_path, readme_command("distrib prepare", "ISIC2020/train"))
    assert report["samples"] == 250
    assert report["classes"] == ["0", "1"]
    assert sum(split["classes"]["1"] for split in report["splits"].values()) == 4
    assert report["torn_groups"] == []
    assert_no_group_in_two_splits(tmp_path / "isic2020-dataset")
    num_test = report["splits"]["test"]["samples"]
    scores = train_and_evaluate(tmp_path, "isic2020", "isic2020-dataset", num_test)
    assert scores["threshold"]["positive_class"] == "1"
    assert 0 <= scores["average_precision"] <= 1


def test_the_binary_table_of_ham10000(ham10000: Path) -> None:
    """The awk command of the read-me adds a column, and `prepare` takes it."""
    lines = (EXAMPLES / "melanoma" / "README.md").read_text(encoding="utf-8").splitlines()
    run(ham10000, ["sh", "-c", next(line for line in lines if line.startswith("awk "))])
    report = run_json(ham10000, readme_command("distrib prepare", "HAM10000", "binary"))
    assert report["classes"] == ["melanoma", "other"]
    assert sum(split["classes"]["melanoma"] for split in report["splits"].values()) == 50


@pytest.mark.timeout(_TIME_LIMIT_S)
def test_every_command_of_the_read_me_is_known() -> None:
    """Verbs and options that the help does not list would only fail in the reader's hands."""
    lines = (EXAMPLES / "melanoma" / "README.md").read_text(encoding="utf-8").splitlines()
    commands = [line.split(" -- ")[-1].split() for line in lines if line.startswith(("distrib ", "launch "))]
    assert len(commands) >= 13
    for verb in {command[1] for command in commands}:
        text = run(EXAMPLES, ["distrib", verb, "--help"])
        used = {word for command in commands if command[1] == verb for word in command if word.startswith("--")}
        assert all(option in text for option in used), (verb, used)


@pytest.mark.timeout(1800)
@pytest.mark.soak
def test_the_whole_story(tmp_path: Path) -> None:
    """Ends with 0 only if all that was planted was refused."""
    done = subprocess.run([sys.executable, EXAMPLES / "melanoma" / "story.py", tmp_path, "--images", "900"],
                          cwd=EXAMPLES.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    summary = json.loads(next(tmp_path.glob("*/summary.json")).read_text(encoding="utf-8"))
    assert "refused: auroc fell" in summary["regression"]
    assert all("error:" in summary[planted] for planted in ("leak_in_the_table", "leak"))
    told = summary["test of ensemble"]["intervals"]["metrics"]
    assert {"auroc", "partial_auroc", "sensitivity_at_specificity"} <= set(told)
