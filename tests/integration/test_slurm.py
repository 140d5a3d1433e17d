"""Jobs through a real Slurm controller: the same model whatever happens, clear ends, nothing left on any node."""

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

import pytest

from tests.conftest import EXPERIMENT, REPOSITORY
from tests.rig.slurm import Slurm, why_not

LIMIT_S = 90
STEPS = 60
pytestmark = pytest.mark.timeout(150)


@pytest.fixture(scope="module")
def slurm() -> Iterator[Slurm]:
    if lack := why_not():
        assert os.environ.get("CI") != "true", lack
        pytest.skip(lack)
    with Slurm(4) as made:
        yield made


class Site:
    """`launch` on the login node, for jobs of one test."""

    def __init__(self, slurm: Slurm, folder: Path) -> None:
        self.slurm, self.folder = slurm, folder
        self._environment = {"PYTHONPATH": str(REPOSITORY), "TMPDIR": str(folder)}

    def start(self, verb: str, *words: str | Path, **environment: str) -> subprocess.Popen[str]:
        return self.slurm.start([sys.executable, "-m", "launch", verb, *words], {**self._environment, **environment},
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=self.folder)

    def ask(self, verb: str, *words: str | Path, code: int = 0, **environment: str) -> tuple[str, str]:
        process = self.start(verb, *words, **environment)
        out, err = process.communicate(timeout=LIMIT_S)
        assert process.returncode == code, err
        return out, err

    def cluster(self, keys: str = "", more: str = "") -> Path:
        path = self.folder / f"cluster{time.monotonic_ns()}.yaml"
        path.write_text(f"launcher: slurm\nranks_per_node: 1\nallocator: system\ngrace_s: 2\nslurm: {{{keys}}}\n{more}\n")
        return path

    def submit(self, cluster: Path, *command: str | Path, options: tuple[str, ...] = ()) -> Path:
        job = self.folder / f"job {time.monotonic_ns()}"
        out, _ = self.ask("submit", cluster, "--job", job, *options, "--", *command)
        assert out == f"{job}\n"
        return job

    def status(self, job: Path) -> dict[str, Any]:
        said: dict[str, Any] = json.loads(self.ask("status", job, "--json")[0])
        return said

    def ended(self, job: Path) -> str:
        """Wait for a job's end: its state."""
        self.until(lambda: self.queue(job).split(" ")[0] not in
                   ("PENDING", "RUNNING", "CONFIGURING", "COMPLETING", "REQUEUED"), f"{job} ends")
        self.until(lambda: not self.slurm.left(), f"nothing is left: {self.slurm.left()}")
        return self.queue(job)

    def queue(self, job: Path) -> str:
        number = json.loads((job / "submitted.json").read_text())["slurm_job"]
        return self.slurm.ask("squeue", "--noheader", "--states=all", f"--jobs={number}", "--format=%T").strip()

    def until(self, condition: Callable[[], object], what: str) -> None:
        deadline = time.monotonic() + LIMIT_S
        while not condition():
            assert time.monotonic() < deadline, f"never: {what}\n{self.words()}\n{self.slurm.jobs()}"
            time.sleep(0.1)

    def words(self) -> str:
        """What launchers and ranks said, for failures."""
        return "\n".join(f"{path.name}: {path.read_text(errors='replace')[-3000:]}" for path in
                         sorted(self.folder.glob("job */log/*")) if path.stat().st_size)


@pytest.fixture
def site(slurm: Slurm, tmp_path: Path) -> Iterator[Site]:
    yield Site(slurm, tmp_path)
    slurm.ask("scancel", "--user=root", "--signal=KILL")
    slurm.ask("scancel", "--user=root")


class Training:
    """A small training, and the digest of its model, trained by one process."""

    def __init__(self, dataset: Path, folder: Path) -> None:
        self._experiment = folder / "experiment.yaml"
        self._experiment.write_text(EXPERIMENT.format(dataset=dataset))
        done = subprocess.run(self.command(folder / "alone"), capture_output=True, text=True, timeout=LIMIT_S, check=False,
                              env={**os.environ, "OMP_NUM_THREADS": "2", "PYTHONPATH": str(REPOSITORY)})
        assert done.returncode == 0, done.stderr
        self.digest = json.loads(done.stdout)["weights_sha256"]

    def command(self, run: Path) -> list[str | Path]:
        return [sys.executable, "-m", "distrib", "train", self._experiment, "--json", "--set", f"train.steps={STEPS}",
                "--set", "evaluate.every_epochs=50", "--set", "checkpoint.every_steps=20", "--run", run]


@pytest.fixture(scope="module")
def training(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Training:
    return Training(dataset, tmp_path_factory.mktemp("training"))


def steps(run: Path) -> list[int]:
    """The steps that a run has logged, in the order of the file."""
    with (run / "metrics.jsonl").open() as file:
        return [line["step"] for text in file if text.endswith("\n") and "loss" in (line := json.loads(text))]


def result(job: Path) -> dict[str, Any]:
    said: dict[str, Any] = json.loads((job / "log/rank-0.out").read_text().splitlines()[-1])
    return said


def under_way(site: Site, run: Path, at_least: int) -> None:
    site.until(lambda: (run / "metrics.jsonl").exists() and len(steps(run)) >= at_least, "training is under way")


def test_the_model_is_the_same(site: Site, training: Training) -> None:
    job = site.submit(site.cluster(), *training.command(site.folder / "run"), options=("--nodes", "3"))
    assert site.ended(job) == "COMPLETED", site.words()
    assert result(job)["weights_sha256"] == training.digest
    assert result(job)["world_size"] == 3
    status = site.status(job)
    assert (status["state"], [rank["code"] for rank in status["ranks"]]) == ("completed", [0, 0, 0])
    assert {rank["host"] for rank in status["ranks"]} == {"node1", "node2", "node3"}
    assert training.digest in site.ask("logs", job)[0]


def test_preempted_and_requeued(site: Site, training: Training) -> None:
    run = site.folder / "run"
    job = site.submit(site.cluster(), *training.command(run), options=("--nodes", "3"))
    under_way(site, run, 5)
    site.slurm.ask("sbatch", "--partition=high", "--nodes=4", "--exclusive", "--output=/dev/null", "--wrap=sleep 1")
    assert site.ended(job) == "COMPLETED", site.words()
    assert "preempted: requeued" in (job / "log/launch.log").read_text()
    assert site.status(job)["attempt"] == 2
    assert result(job)["weights_sha256"] == training.digest
    assert len(steps(run)) == len(set(steps(run)))  # it was saved in time: no step was done twice


def test_a_spare_stands_in_for_a_dead_node(site: Site, training: Training) -> None:
    run = site.folder / "run"
    job = site.submit(site.cluster("spares: 1"), *training.command(run), options=("--nodes", "3"))
    under_way(site, run, 30)
    site.slurm.nodes.kill("node2")
    site.until(lambda: "attempt 2 on node1, node3, node4" in (job / "log/launch.log").read_text(), "the spare is taken")
    site.slurm.revive("node2")
    assert site.ended(job) == "COMPLETED", site.words()
    assert result(job)["weights_sha256"] == training.digest
