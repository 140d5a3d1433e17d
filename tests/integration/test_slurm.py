"""Jobs through a real Slurm controller: the same model whatever happens, clear ends, nothing left on any node."""

from __future__ import annotations

import contextlib
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

from tests.conftest import EXPERIMENT, REPOSITORY
from tests.rig.slurm import Slurm, why_not

LIMIT_S = 90
STEPS = 40
pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module")
def slurm() -> Iterator[Slurm]:
    """Four nodes for the tests, and node5 for the job that meets its time limit."""
    if lack := why_not():
        assert os.environ.get("CI") != "true", lack
        pytest.skip(lack)
    with Slurm(5) as made:
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
        path.write_text(f"launcher: slurm\nranks_per_node: 1\nallocator: system\ngrace_s: 2\nslurm: {{{keys}}}\n{more}")
        return path

    def submit(self, cluster: Path, *command: str | Path, options: tuple[str, ...] = ()) -> Path:
        job = self.folder / f"job {time.monotonic_ns()}"
        out, _ = self.ask("submit", cluster, "--job", job, *options, "--", *command)
        assert out == f"{job}\n"
        return job

    def status(self, job: Path) -> dict[str, Any]:
        said: dict[str, Any] = json.loads(self.ask("status", job, "--json")[0])
        return said

    def ended(self, job: Path, empty: bool = True) -> str:
        """Wait for a job's end: its state. Nothing may be left on any node, if no other job runs."""
        self.until(lambda: self.queue(job) not in ("PENDING", "RUNNING", "CONFIGURING", "COMPLETING", "REQUEUED"),
                   f"{job} ends")
        if empty:
            self.until(lambda: not self.left(), "nothing is left")
        return self.queue(job)

    def queue(self, job: Path) -> str:
        number = json.loads((job / "submitted.json").read_text())["slurm_job"]
        return self.slurm.ask("squeue", "--noheader", "--states=all", f"--jobs={number}", "--format=%T").strip()

    def until(self, condition: Callable[[], object], what: str) -> None:
        deadline = time.monotonic() + LIMIT_S
        while not condition():
            assert time.monotonic() < deadline, "\n".join((f"never: {what}", self.words(), *self.jobs(), *self.left()))
            time.sleep(0.1)

    def jobs(self) -> list[str]:
        """Jobs in Slurm's queue, but for the one of node5."""
        return [line for line in self.slurm.jobs() if not line.endswith(" timed")]

    def left(self) -> list[str]:
        """What runs on the nodes of the tests, beside Slurm itself."""
        return [line for line in self.slurm.left() if not line.startswith("node5:")]

    def words(self) -> str:
        """What launchers and ranks said, for failures."""
        return "\n".join(f"{path.name}: {path.read_text(errors='replace')[-3000:]}" for path in
                         sorted(self.folder.glob("job*/**/log/*")) if path.stat().st_size)


STUB = """\
import os, signal, subprocess, sys, time
from pathlib import Path
place, total = Path(sys.argv[1]), int(sys.argv[2])
file = place / f"rank-{os.environ['RANK']}"
place.mkdir(exist_ok=True)
asked = []
signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
step = int(file.read_text()) if file.exists() else 0
subprocess.Popen(["setsid", "sleep", "1000"])  # somebody's helper, not ended by its parent
print(f"from step {step}", flush=True)
(place / f"begun-{os.environ['RANK']}").touch()
while step < total and not asked:
    if (place / "fail").exists() and os.environ["RANK"] == "0":
        sys.exit(1)
    time.sleep(0.1)
    step += 1
time.sleep(0.5)
file.write_text(str(step))
sys.exit(0 if step == total else 143)
"""
"""Counts to a number; on SIGTERM saves where it is, and goes on from there the next time."""


class Stub:
    def __init__(self, site: Site, keys: str = "", nodes: int = 1, total: int = 100000, more: str = "") -> None:
        self.site = site
        self.place = site.folder / f"place{time.monotonic_ns()}"
        script = site.folder / "stub.py"
        script.write_text(STUB)
        self.words = ("--nodes", str(nodes), "--", sys.executable, script, self.place, str(total))
        self.cluster = site.cluster(keys, more)
        self._nodes = nodes

    def submit(self) -> Path:
        job = self.site.folder / f"job {time.monotonic_ns()}"
        self.site.ask("submit", self.cluster, "--job", job, *self.words)
        return job

    def begun(self) -> None:
        self.site.until(lambda: len(list(self.place.glob("begun-*"))) == self._nodes, "all ranks have begun")

    def saved(self) -> list[int]:
        return [int(file.read_text()) for file in self.place.glob("rank-*")]


@pytest.fixture
def site(slurm: Slurm, tmp_path: Path) -> Iterator[Site]:
    yield Site(slurm, tmp_path)
    for line in Site(slurm, tmp_path).jobs():  # after a failure
        slurm.ask("scancel", line.split()[0])


@pytest.fixture(scope="module", autouse=True)
def timed(slurm: Slurm, tmp_path_factory: pytest.TempPathFactory) -> tuple[Site, Stub, Path]:
    """A job of 45 s that is told to save 10 to 40 s after each start, 50 s before its time limit."""
    site = Site(slurm, tmp_path_factory.mktemp("timed"))
    stub = Stub(site, "time: '1', stop_signal_s: 50, options: [--nodelist=node5]", total=450,
                more="name: timed\nstop_grace_s: 40")
    return site, stub, stub.submit()


class Training:
    """A small training, and the digest of its model, trained by one process."""

    def __init__(self, dataset: Path, folder: Path) -> None:
        self._experiment = folder / "experiment.yaml"
        self._experiment.write_text(EXPERIMENT.format(dataset=dataset))
        done = subprocess.run(self.command(folder / "alone"), capture_output=True, text=True, timeout=LIMIT_S,
                              check=False, env={**os.environ, "OMP_NUM_THREADS": "2", "PYTHONPATH": str(REPOSITORY)})
        assert done.returncode == 0, done.stderr
        self.digest = json.loads(done.stdout)["weights_sha256"]

    def command(self, run: Path) -> list[str | Path]:
        return [sys.executable, "-m", "distrib", "train", self._experiment, "--json", "--set", f"train.steps={STEPS}",
                "--set", "evaluate.every_epochs=50", "--set", "checkpoint.every_steps=10", "--run", run]


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


def test_an_elastic_job_goes_on_without_a_rank_that_was_killed(site: Site) -> None:
    stub = Stub(site, nodes=3, more="elastic: true", total=60)
    job = stub.submit()
    stub.begun()
    report = json.loads((job / "attempt-001/rank-1.json").read_text())
    ranks = [pid for pid in site.slurm.nodes.pids(report["host"])
             if Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[1:2] == [str(site.folder / "stub.py").encode()]]
    assert len(ranks) == 1
    os.kill(ranks[0], signal.SIGKILL)
    assert site.ended(job) == "COMPLETED", site.words()
    told = (job / "log/launch.log").read_text()
    assert f"rank 1 on {report['host']} is lost: it was killed by SIGKILL" in told
    assert "it lost rank 1 (was killed by SIGKILL)" in told
    assert stub.saved() == [60, 60]


@pytest.mark.soak
def test_an_elastic_job_goes_on_without_a_dead_node(site: Site) -> None:
    stub = Stub(site, nodes=3, more="elastic: true", total=150)
    job = stub.submit()
    stub.begun()
    dead = json.loads((job / "attempt-001/rank-2.json").read_text())["host"]
    site.slurm.nodes.kill(dead)
    state = site.ended(job, empty=False)
    site.slurm.revive(dead)
    assert state == "COMPLETED", site.words()
    assert "it lost rank 2 (left no last word)" in (job / "log/launch.log").read_text()
    assert stub.saved() == [150, 150]


@pytest.mark.soak  # half a minute until a host counts as lost
def test_an_elastic_job_does_not_wait_for_ranks_that_hang(site: Site) -> None:
    stub = Stub(site, nodes=3, more="elastic: true", total=50)
    job = stub.submit()
    stub.begun()
    host = json.loads((job / "attempt-001/rank-2.json").read_text())["host"]
    hung = [int(line.split()[1]) for line in site.slurm.left() if line.startswith(f"{host}:")]
    try:
        for pid in hung:
            os.kill(pid, signal.SIGSTOP)
        site.until(lambda: "it lost rank 2 (left no last word)" in (job / "log/launch.log").read_text(), "it ends")
    finally:
        for pid in hung:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
    assert site.ended(job) == "COMPLETED", site.words()
    assert f"{host}: no sign of life for 30 s from rank 2" in (job / "log/launch.log").read_text()


@pytest.mark.soak
def test_an_elastic_job_that_is_preempted_saves_and_is_requeued(site: Site) -> None:
    stub = Stub(site, nodes=2, more="elastic: true\nrestarts: 3", total=150)
    job = stub.submit()
    stub.begun()
    site.slurm.ask("sbatch", "--partition=high", "--nodelist=node[1-4]", "--exclusive", "--output=/dev/null",
                   "--wrap=sleep 1")
    site.until(lambda: "preempted: requeued" in (job / "log/launch.log").read_text(), "requeued")
    assert all(0 < step < 150 for step in stub.saved())
    assert len(stub.saved()) == 2
    assert site.ended(job) == "COMPLETED", site.words()
    assert site.status(job)["attempt"] == 2
    assert stub.saved() == [150, 150]


@pytest.mark.soak  # a minute and a half
def test_preempted_and_requeued_then_a_node_dies(site: Site, training: Training) -> None:
    run = site.folder / "run"
    job = site.submit(site.cluster("spares: 1"), *training.command(run), options=("--nodes", "3"))
    log = job / "log/launch.log"
    under_way(site, run, 5)
    site.slurm.ask("sbatch", "--partition=high", "--nodelist=node[1-4]", "--exclusive", "--output=/dev/null",
                   "--wrap=sleep 1")
    site.until(lambda: "preempted: requeued" in log.read_text(), "requeued")
    saved = len(steps(run))
    assert len(set(steps(run))) == saved < STEPS
    site.until(lambda: len(steps(run)) > saved + 5, "it goes on")
    assert steps(run) == list(range(1, len(steps(run)) + 1))  # from its step: nothing was done twice
    site.slurm.nodes.kill("node2")
    site.until(lambda: "attempt 3 on node1, node3, node4" in log.read_text(), "the spare is taken")
    site.slurm.revive("node2")
    assert site.ended(job) == "COMPLETED", site.words()
    assert result(job)["weights_sha256"] == training.digest


def test_cancel_lets_ranks_save(site: Site) -> None:
    stub = Stub(site, nodes=2)
    job = stub.submit()
    stub.begun()
    assert site.status(job)["state"] == "running"
    site.ask("cancel", job)
    assert site.ended(job) == "FAILED", site.words()
    assert len(stub.saved()) == 2
    assert "SIGTERM: passed on" in (job / "log/launch.log").read_text()
    waiting = Stub(site, keys="options: [--hold]").submit()
    assert site.status(waiting)["state"] == "waiting"
    site.ask("cancel", waiting)
    assert site.ended(waiting) == "CANCELLED"


@pytest.mark.soak  # two node deaths and the wait until Slurm notices
def test_dead_nodes_without_spares_requeue(site: Site) -> None:
    batch, other = Stub(site, total=60), Stub(site, "spares: 1", nodes=2, total=60)
    its_host = batch.submit()
    batch.begun()  # on node1
    another = other.submit()
    other.begun()  # on node2 and node3; node4 is the spare
    dead = {"node1", "node3", "node4"}
    for name in dead:
        site.slurm.nodes.kill(name)
    (other.place / "fail").touch()  # rank 0, of node2, notices
    site.until(lambda: "no spare node is left: requeued" in (another / "log/launch.log").read_text(), "requeued")
    (other.place / "fail").unlink()
    down = ("sinfo", "--noheader", "--Node", "--partition=debug", "--states=down", "--format=%n")
    site.until(lambda: dead == set(site.slurm.ask(*down).split()), "Slurm notices")
    for name in dead:
        site.slurm.revive(name)
    for job in (its_host, another):
        assert site.ended(job, empty=job is another) == "COMPLETED", site.words()
        assert site.status(job)["attempt"] == 2, site.words()
    assert batch.saved() + other.saved() == [60, 60, 60]


def test_arrays_dependencies_and_a_job_that_slurm_forgot(site: Site) -> None:
    say = (sys.executable, "-c", "import os; print(os.environ['SLURM_ARRAY_TASK_ID'], flush=True)")
    job = site.submit(site.cluster(), *say, options=("--array", "1,3"))
    fails = site.submit(site.cluster(), "false", options=("--after", str(job)))
    never = site.submit(site.cluster(), "true", options=("--after", str(fails)))
    site.until(lambda: "DependencyNeverSatisfied" in site.status(never)["reason"], "Slurm refuses what comes after")
    assert site.status(fails)["state"] == "failed"
    assert site.status(job)["state"] == "2 completed"
    assert [site.ask("logs", job / f"task-{task}")[0] for task in (1, 3)] == ["1\n", "3\n"]
    assert site.status(job / "task-3")["state"] == "completed"
    (job / "task-3/submitted.json").write_text('{"launcher": "slurm", "slurm_job": "999999"}')
    forgotten = site.status(job / "task-3")
    assert (forgotten["state"], forgotten["reason"]) == ("ended", "Slurm has forgotten the job; its ranks succeeded")


STUDY = """\
experiment: {folder}/experiment.yaml
folder: {folder}/study
trials: 2
keys: {{train.lr: {{low: 0.01, high: 0.1, log: true}}}}
"""


def test_an_array_shares_a_study_though_a_worker_and_the_controller_are_killed(site: Site, dataset: Path) -> None:
    text = EXPERIMENT.format(dataset=dataset).replace("lanes: 8", f"lanes: 2, steps: {STEPS}")
    (site.folder / "experiment.yaml").write_text(f"{text}checkpoint: {{every_steps: 5}}\n")
    file = site.folder / "study.yaml"
    file.write_text(STUDY.format(folder=site.folder))
    tune: list[str | Path] = [sys.executable, "-m", "distrib", "tune", file]
    job = site.submit(site.cluster(), *tune, "--worker", options=("--array", "0-1"))
    first = site.folder / "study/trials/0000"
    site.until(lambda: list(first.glob("checkpoints/step-*")), "the first trial has saved")
    mine = next(process for process in psutil.process_iter(["cmdline"])
                if str(first) in (process.info["cmdline"] or []))
    worker = next(parent for parent in mine.parents() if "tune" in parent.cmdline())
    for process in (worker, *worker.children(recursive=True)):
        process.kill()
    site.slurm.lose_controller()
    site.until(lambda: set(site.status(job)["state"].split(", ")) == {"1 completed", "1 failed"}, "the array ends")
    done = subprocess.run([*tune, "--show", "--json"], capture_output=True, text=True, timeout=LIMIT_S, check=True,
                          env={**os.environ, "PYTHONPATH": str(REPOSITORY)})
    assert [row["state"] for row in json.loads(done.stdout)["trials"]] == ["complete"] * 2, site.words()
    for run in sorted((site.folder / "study/trials").iterdir()):
        assert steps(run) == list(range(1, STEPS + 1))
        begun = [json.loads(line)["step"] for line in (run / "environment.jsonl").read_text().splitlines()]
        assert begun[0] == 0
        assert all(step > 0 for step in begun[1:])
        assert len(begun) == (2 if run == first else 1)


HOSTILE = "it's \"a\" $(touch hacked) `touch hacked` #1; 50%j é"


def test_words_arrive_as_they_are(site: Site) -> None:
    show = (sys.executable, "-c", "import json, os, sys; print(json.dumps([sys.argv[1:], os.environ['X']]))")
    words = ("a b", "$(touch hacked)", "\n", "", "'", "--nodes=9")
    job = site.folder / f"job {HOSTILE}"
    cluster = site.cluster("options: ['--comment=" + HOSTILE.replace("'", "''") + "']", f"name: {json.dumps(HOSTILE)}\n"
                           f"env: {{X: {json.dumps(HOSTILE)}}}")
    site.ask("submit", cluster, "--job", job, "--", *show, *words)
    assert site.ended(job) == "COMPLETED"
    assert json.loads((job / "log/rank-0.out").read_text()) == [list(words), HOSTILE]
    assert (job / "log/launch.log").exists()
    number = json.loads((job / "submitted.json").read_text())["slurm_job"]
    known = site.slurm.ask("squeue", "--noheader", "--states=all", f"--jobs={number}", "--format=%j|%k")
    assert known == f"{HOSTILE}|{HOSTILE}\n"
    assert not list(site.folder.rglob("hacked"))
    _, err = site.ask("submit", cluster, "--job", site.folder / "a\nb", "--", "true", code=2)
    assert "line break" in err


def test_a_refusal_is_one_line(site: Site) -> None:
    _, err = site.ask("submit", site.cluster("partition: none"), "--job", site.folder / "job", "--", "true", code=2)
    assert err.count("\n") == 1
    assert "invalid partition specified: none" in err
    assert not (site.folder / "job").exists()


def test_run_waits_shows_rank_0_and_fails_as_the_first_rank(site: Site) -> None:
    fail = ("import os, sys, subprocess; subprocess.Popen(['setsid', 'sleep', '1000']); print(os.environ['RANK'], "
            "sys.stdin.read()); sys.exit(3 * int(os.environ['RANK']))")
    process = site.start("run", site.cluster(), "--nodes", "2", "--", sys.executable, "-c", fail)
    out, err = process.communicate(timeout=LIMIT_S)
    assert (process.returncode, out) == (3, "0 \n"), err
    assert "rank 1 failed first: it ended with exit code 3" in err
    site.until(lambda: not site.left() and not site.jobs(), "nothing is left")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_stopped_run_leaves_nothing(site: Site, number: signal.Signals) -> None:
    stub = Stub(site, nodes=3)
    process = site.start("run", stub.cluster, *stub.words)
    stub.begun()
    process.send_signal(number)
    process.communicate(timeout=LIMIT_S)
    if number == signal.SIGINT:
        assert process.returncode == 130
        assert len(stub.saved()) == 3
    site.until(lambda: not site.left() and not site.jobs(), "nothing is left")


@pytest.mark.soak  # the shortest time limit is a minute
def test_the_time_limit_requeues(timed: tuple[Site, Stub, Path]) -> None:
    site, stub, job = timed
    assert site.ended(job) == "COMPLETED", site.words()
    assert stub.saved() == [450]
    assert "the time limit is near: requeued" in (job / "log/launch.log").read_text()
    first, second, *_ = (job / "log/rank-0.out").read_text().splitlines()
    assert first == "from step 0"
    assert second > "from step 0"
