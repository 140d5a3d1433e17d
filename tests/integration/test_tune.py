"""Studies with real trials: whatever is killed goes on, and nothing is trained twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.conftest import EXPERIMENT, REPOSITORY, Start
from tests.rig import postgres
from tests.rig.postgres import Postgres

LIMIT_S = 150
EVERY_STEPS = 5
pytestmark = pytest.mark.timeout(400)

STUDY = """\
experiment: {folder}/experiment.yaml
folder: {folder}/study
trials: 2
at_once: 2
keys:
  train.optimizer: {{choices: [sgd, adamw]}}
  train.lr: {{low: 1e-3, high: 0.1, log: true}}
  train.momentum: {{low: 0.5, high: 0.9, when: {{train.optimizer: sgd}}}}
"""


class Studied:
    """A study in a folder, and the processes that see to it."""

    def __init__(self, folder: Path, start: Start, dataset: Path, keys: str = "", epochs: int = 16) -> None:
        self.folder, self.root, self._start = folder, folder / "study", start
        text = EXPERIMENT.format(dataset=dataset).replace("epochs: 2, global_batch: 16, lanes: 8",
                                                          f"epochs: {epochs}, global_batch: 16, lanes: 2")
        (folder / "experiment.yaml").write_text(f"{text}checkpoint: {{every_steps: {EVERY_STEPS}}}\n")
        self.file = folder / "study.yaml"
        self.file.write_text(STUDY.format(folder=folder) + keys)

    def start(self, *words: str) -> subprocess.Popen[str]:
        return self._start(sys.executable, "-m", "distrib", "tune", self.file, *words)

    def finish(self, process: subprocess.Popen[str], code: int = 0) -> tuple[dict[str, Any], str]:
        out, err = process.communicate(timeout=LIMIT_S)
        assert process.returncode == code, err
        return (json.loads(out) if out else {}), err

    def steps(self, number: int) -> list[int]:
        """The steps that a trial's record has, in its order."""
        return [record["step"] for record in self._lines(number, "metrics.jsonl") if record["event"] == "step"]

    def starts(self, number: int) -> list[int]:
        """The step of each start of a trial."""
        return [record["step"] for record in self._lines(number, "environment.jsonl")]

    def checkpoint(self, number: int) -> int:
        paths = list((self.root / f"trials/{number:04d}/checkpoints").glob("step-*"))
        return max((int(path.name.removeprefix("step-")) for path in paths), default=0)

    def is_under_way(self, number: int) -> bool:
        """Whether a trial has saved, and has some steps to go."""
        return self.checkpoint(number) > max(self.starts(number)[-1:], default=0) and not self.has_result(number)

    def has_result(self, number: int) -> bool:
        return (self.root / f"trials/{number:04d}/result.json").exists()

    def _lines(self, number: int, name: str) -> list[dict[str, Any]]:
        path = self.root / f"trials/{number:04d}" / name
        lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
        return [json.loads(line) for line in lines if line.endswith(b"\n")]


@pytest.fixture
def studied(tmp_path: Path, start: Start, dataset: Path) -> Iterator[Callable[..., Studied]]:
    yield lambda keys="", epochs=16: Studied(tmp_path, start, dataset, keys, epochs)
    for process in trainings(tmp_path):
        process.kill()


def trainings(folder: Path) -> list[psutil.Process]:
    """What trains trials of a study in this folder: launchers, ranks and their guards."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if any(word.startswith(f"{folder}/study/") for word in words):
            found.append(process)
    return found


def until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.02)


def test_killed_trials_a_killed_study_and_both_go_on(studied: Callable[..., Studied]) -> None:
    study = studied()
    # A killed trial goes on by itself.
    first = study.start("--json")
    until(lambda: study.is_under_way(0), "the first trial has saved")
    rank = next(process for process in trainings(study.folder) if "trials/0000" in " ".join(process.cmdline())
                and process.cmdline()[1:4] == ["-m", "distrib", "train"])
    rank.kill()
    until(lambda: len(study.starts(0)) == 2, "it is started again")
    # The study alone is killed: its trainings save and end.
    until(lambda: study.is_under_way(0) or study.is_under_way(1), "a trial has saved")
    first.kill()
    until(lambda: not trainings(study.folder), "trainings end with their study")
    saved = {number: study.checkpoint(number) for number in (0, 1)}
    whole = [number for number in (0, 1) if study.has_result(number)]
    # All is killed at once.
    second = study.start("--json")
    number = next(number for number in (0, 1) if number not in whole)
    known = len(study.starts(number))
    until(lambda: len(study.starts(number)) > known and study.is_under_way(number), "it goes on, and saves")
    second.kill()
    for process in trainings(study.folder):
        process.kill()
    second.communicate()
    until(lambda: not trainings(study.folder), "all are dead")
    for number in (0, 1):
        if number not in whole and saved[number] and len(study.starts(number)) > 1:
            assert saved[number] in study.starts(number)  # nothing at all was done again: they had saved in order
    report, _ = study.finish(study.start("--json"))
    assert report["finished"]
    assert [row["state"] for row in report["trials"]] == ["complete"] * 2
    total = study.steps(0)[-1]
    for number in range(2):
        assert study.steps(number) == list(range(1, total + 1))  # each once
        starts = study.starts(number)
        assert starts == sorted(starts)
        assert starts.count(0) == 1  # none from its beginning twice
    assert len(study.starts(0)) >= 3
    # Again, nothing is left to be done.
    before = {number: study.starts(number) for number in range(2)}
    again, _ = study.finish(study.start("--json"))
    assert again["trials"] == report["trials"]
    assert {number: study.starts(number) for number in range(2)} == before


def test_a_journal_with_a_torn_end_a_pruned_trial_and_the_best_experiment(studied: Callable[..., Studied]) -> None:
    study = studied("pruning: {reduction: 2, min_epochs: 1}\n", epochs=6)
    study.file.write_text(study.file.read_text().replace("low: 1e-3, high: 0.1", "choices: [0.05, 1e-9]")
                          .replace(", log: true", "").replace("at_once: 2", "at_once: 1"))
    study.finish(study.start("--at-once", "2", "--json"))
    with (study.root / "journal.jsonl").open("ab") as journal:
        journal.write(b'{"op_code":4,"wor')
    study.file.write_text(study.file.read_text().replace("trials: 2", "trials: 4"))
    report, told = study.finish(study.start("--json"))
    states = [row["state"] for row in report["trials"]]
    assert states[0] == "complete"
    for row in report["trials"]:
        if row["values"]["train.lr"] == 1e-9:
            assert row["state"] == "pruned", told
            assert row["epochs"] < 6
            assert study.checkpoint(row["number"]) > 0  # it could be looked at, or go on
            assert not study.has_result(row["number"])
    assert "pruned" in states
    assert report["best"]["score"] >= report["base_score"]
    # The best experiment is one as it is: the same model comes out.
    best = Path(report["best_experiment"])
    done = subprocess.run([sys.executable, "-m", "distrib", "train", best, "--run", study.folder / "again", "--json"],
                          capture_output=True, text=True, timeout=LIMIT_S, check=True,
                          env={**os.environ, "PYTHONPATH": str(REPOSITORY)})
    trained = json.loads((Path(report["best"]["run"]) / "result.json").read_bytes())
    assert json.loads(done.stdout)["weights_sha256"] == trained["weights_sha256"]


def test_another_study_is_refused_and_one_that_fails_says_why(studied: Callable[..., Studied]) -> None:
    study = studied(epochs=1)
    report, told = study.finish(study.start("--set", "model.name=no_such_model", "--json"), code=2)
    assert report == {}
    assert "all 2 trials failed" in told
    assert "no_such_model" in told.splitlines()[-1]
    _, told = study.finish(study.start(), code=2)
    assert f"{study.root} was begun with another experiment.model.name" in told


@pytest.mark.soak
def test_sqlite_holds_a_study_for_two_workers_and_a_trial_that_is_no_experiment_fails_alone(
        studied: Callable[..., Studied]) -> None:
    study = studied(epochs=1)
    text = study.file.read_text().replace("trials: 2\n", "")
    study.file.write_text(f"{text}  train.lanes: {{choices: [4]}}\n  train.global_batch: {{low: 8, high: 16}}\n"
                          f"trials: 4\nstorage: sqlite:///{study.folder}/trials.db\n")
    workers = [study.start("--worker", "--json") for _ in range(2)]
    for worker in workers:
        study.finish(worker)
    report, _ = study.finish(study.start("--show", "--json"))
    assert report["trials"][0]["state"] == "complete"
    for row in report["trials"][1:]:
        if row["values"]["train.global_batch"] % 4:
            assert row["state"] == "failed"
            assert "train.lanes (4) must divide" in row["message"]
        else:
            assert row["state"] == "complete"
    assert "failed" in [row["state"] for row in report["trials"]]
    trained = [row["number"] for row in report["trials"] if row["state"] == "complete"]
    assert [study.starts(number) for number in trained] == [[0]] * len(trained)  # each by one worker only
    assert not (study.root / "journal.jsonl").exists()


PASSWORD = "s3cret-of-the-database"


def test_postgresql_holds_a_study_and_its_password_is_nowhere(studied: Callable[..., Studied]) -> None:
    if lack := postgres.why_not():
        assert os.environ.get("CI") != "true", lack
        pytest.skip(lack)
    with Postgres(PASSWORD) as server:
        study = studied()
        text = study.file.read_text()
        study.file.write_text(f"{text}storage: {server.url('wrong-' + PASSWORD)}\n")
        _, told = study.finish(study.start(), code=2)
        assert "postgresql database studies" in told
        assert PASSWORD not in told
        study.file.write_text(f"{text}storage: {server.url(PASSWORD)}\n")
        process = study.start("--json")
        until(lambda: study.is_under_way(0), "a trial has saved")
        process.send_signal(signal.SIGINT)  # Ctrl-C
        report, told = study.finish(process, code=130)
        assert not report["finished"]
        assert not trainings(study.folder)
        saved = {number: study.checkpoint(number) for number in range(2)}
        report, again = study.finish(study.start("--json"))
        assert report["finished"]
        for number in range(2):
            assert study.starts(number) in ([0], [0, saved[number]])
            assert study.steps(number) == list(range(1, study.steps(0)[-1] + 1))
        assert PASSWORD not in told + again + json.dumps(report)
        files = [path for path in study.root.rglob("*") if path.is_file()]
        assert not [path for path in files if PASSWORD.encode() in path.read_bytes()]
