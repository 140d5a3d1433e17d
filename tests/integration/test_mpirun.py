"""Ranks on three nodes by real mpirun over a stand-in for ssh: the same model, clear ends, nothing left behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY, Start
from tests.rig.nodes import Nodes, why_not

LIMIT_S = 90
FLAVOURS = {"Open MPI": "mpirun.openmpi", "MPICH": "mpirun.mpich"}


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    lack = why_not() or next((f"{name} is not installed" for name in FLAVOURS.values() if shutil.which(name) is None),
                             None)
    if lack:
        assert os.environ.get("CI") != "true", lack
        pytest.skip(lack)
    with Nodes(3, "10.78.0") as made:
        yield made


class Cluster:
    """`launch` on node1, for three nodes."""

    def __init__(self, nodes: Nodes, folder: Path, program: str) -> None:
        self.nodes, self.folder = nodes, folder
        self.job = folder / "a job; $(touch hacked) '\""
        (folder / "bin").mkdir()
        self._environment = {**nodes.ssh(folder / "bin"), "PYTHONPATH": str(REPOSITORY), "TMPDIR": str(folder)}
        self._file = folder / "cluster.yaml"
        self._file.write_text("name: '$(touch hacked) \"'\nlauncher: mpirun\nhosts: ['node[1-3]']\nranks_per_node: 1\n"
                              f"allocator: system\ngrace_s: 3\nmpirun: {{program: {program}}}\n")

    def start(self, verb: str, *words: str | Path) -> subprocess.Popen[str]:
        return self.nodes.start("node1", [sys.executable, "-m", "launch", verb, *words], self._environment,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=self.folder)

    def run(self, *command: str | Path, verb: str = "run", options: tuple[str, ...] = ()) -> subprocess.Popen[str]:
        return self.start(verb, self._file, "--job", self.job, *options, "--", *command)

    def left(self) -> list[str]:
        """Processes on any node."""
        pids = [pid for name in self.nodes.names for pid in self.nodes.pids(name)]
        return [Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode() for pid in pids
                if Path(f"/proc/{pid}").exists()]

    def until(self, condition: Callable[[], object], what: str) -> None:
        deadline = time.monotonic() + LIMIT_S
        while not condition():
            assert time.monotonic() < deadline, f"never: {what}"
            time.sleep(0.05)


@pytest.fixture(params=FLAVOURS)
def cluster(request: pytest.FixtureRequest, nodes: Nodes, tmp_path: Path) -> Cluster:
    return Cluster(nodes, tmp_path, FLAVOURS[request.param])


def ended(process: subprocess.Popen[str]) -> tuple[str, str]:
    out, err = process.communicate(timeout=LIMIT_S)
    return out, err


SHOW = """\
import json, os, socket, sys
print(json.dumps([socket.gethostname(), dict(os.environ), sys.argv[1:], sorted(os.sched_getaffinity(0))]))
"""


def test_what_ranks_get(cluster: Cluster) -> None:
    script = cluster.folder / "show it.py"
    script.write_text(SHOW)
    words = ("a b", "$(touch hacked)", "'\"\\", "--", "\n", "", "-np", ";", "*")
    out, err = ended(cluster.run(sys.executable, script, *words, options=("--set", "env.MINE='$(touch hacked) \"'",)))
    assert len(out.splitlines()) == 1, err  # rank 0's stdout as it is
    logs = [out, *((cluster.job / f"log/rank-{rank}.out").read_text() for rank in (1, 2))]
    for rank, text in enumerate(logs):
        host, environment, arguments, cpus = json.loads(text)
        assert host == f"node{rank + 1}"
        expected = {"RANK": str(rank), "WORLD_SIZE": "3", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1",
                    "GROUP_RANK": str(rank), "MASTER_ADDR": "node1", "MINE": '$(touch hacked) "'}
        assert expected.items() <= environment.items()
        assert environment["OMP_NUM_THREADS"] == str(len(cpus))
        assert arguments == list(words)
    assert not list(cluster.folder.rglob("hacked"))
    assert not cluster.left()


def test_the_model_is_the_same(cluster: Cluster, start: Start, experiment: Path, tmp_path: Path) -> None:
    train = (sys.executable, "-m", "distrib", "train", experiment, "--json", "--set", "train.steps=8", "--run")
    alone, err = start(*train, tmp_path / "alone").communicate(timeout=LIMIT_S)
    out, told = ended(cluster.run(*train, tmp_path / "three"))
    assert json.loads(out)["world_size"] == 3, told
    assert json.loads(out)["weights_sha256"] == json.loads(alone)["weights_sha256"], err


FAIL = """\
import os, sys, time
if os.environ["RANK"] == "2":
    print("error: the reason", file=sys.stderr)
    sys.exit(2)
os.spawnvp(os.P_NOWAIT, "setsid", ["setsid", "sleep", "1000"])
time.sleep(1000)
"""


def test_a_rank_that_fails_ends_all(cluster: Cluster) -> None:
    process = cluster.run(sys.executable, "-c", FAIL)
    _, err = ended(process)
    assert process.returncode == 2
    assert "error: rank 2: the reason" in err
    cluster.until(lambda: not cluster.left(), "nothing is left")


SAVE = """\
import os, signal, sys, time
from pathlib import Path
def save(*_):
    time.sleep(2)  # longer than mpirun itself would give
    Path(sys.argv[1], "saved-" + os.environ["RANK"]).touch()
    sys.exit(143)
signal.signal(signal.SIGTERM, save)
Path(sys.argv[1], "ready-" + os.environ["RANK"]).touch()
time.sleep(1000)
"""


def test_ctrl_c_lets_ranks_save(cluster: Cluster) -> None:
    process = cluster.run(sys.executable, "-c", SAVE, cluster.folder)
    cluster.until(lambda: len(list(cluster.folder.glob("ready-*"))) == 3, "ranks are ready")
    launcher = next(pid for pid in cluster.nodes.pids("node1")
                    if b"launch\0run" in Path(f"/proc/{pid}/cmdline").read_bytes())
    os.kill(launcher, signal.SIGINT)
    _, err = ended(process)
    assert len(list(cluster.folder.glob("saved-*"))) == 3, err
    assert process.returncode == 130, err
    cluster.until(lambda: not cluster.left(), "nothing is left")


def test_submitted_watched_and_cancelled(cluster: Cluster) -> None:
    process = cluster.run(sys.executable, "-c", SAVE, cluster.folder, verb="submit")
    out, err = ended(process)
    assert out.strip() == str(cluster.job), err
    cluster.until(lambda: len(list(cluster.folder.glob("ready-*"))) == 3, "ranks are ready")
    status = json.loads(ended(cluster.start("status", cluster.job, "--json"))[0])
    assert status["state"] == "running"
    assert [(rank["host"], rank["state"]) for rank in status["ranks"]] == [
        (f"node{number}", "running") for number in (1, 2, 3)]
    ended(cluster.start("cancel", cluster.job))
    cluster.until(lambda: not cluster.left(), "nothing is left")
    assert len(list(cluster.folder.glob("saved-*"))) == 3
    status = json.loads(ended(cluster.start("status", cluster.job, "--json"))[0])
    assert (status["state"], {rank["code"] for rank in status["ranks"]}) == ("ended", {143})


def test_a_launcher_killed_leaves_nothing(cluster: Cluster) -> None:
    process = cluster.run(sys.executable, "-c", FAIL.replace('== "2"', '== "none"'))
    cluster.until(lambda: len(list(cluster.job.glob("attempt-001/rank-*.json"))) == 3, "ranks run")
    launcher = next(pid for pid in cluster.nodes.pids("node1")
                    if b"launch\0run" in Path(f"/proc/{pid}/cmdline").read_bytes())
    os.kill(launcher, signal.SIGKILL)
    ended(process)
    cluster.until(lambda: not cluster.left(), "nothing is left")
    status = json.loads(ended(cluster.start("status", cluster.job, "--json"))[0])
    assert status["state"] == "lost"
    ended(cluster.start("logs", cluster.job, "--rank", "1", "--follow"))


GO_ON = """\
import os, sys, time
from pathlib import Path
place, rank = Path(sys.argv[1]), os.environ["RANK"]
(place / f"ready-{rank}").write_text(str(os.getpid()))
while not (place / "go").exists():
    time.sleep(0.05)
print("end of", rank)
"""


def test_in_an_elastic_job_the_others_go_on(cluster: Cluster) -> None:
    process = cluster.run(sys.executable, "-c", GO_ON, cluster.folder, options=("--elastic",))
    cluster.until(lambda: len(list(cluster.folder.glob("ready-*"))) == 3, "ranks are ready")
    os.kill(int((cluster.folder / "ready-1").read_text()), signal.SIGKILL)
    assert process.stderr is not None
    told = next(line for line in process.stderr if "is lost" in line)
    assert "rank 1 on node2 is lost: it was killed by SIGKILL" in told
    assert "2 others go on" in told
    (cluster.folder / "go").touch()
    out, err = ended(process)
    assert (process.returncode, out) == (0, "end of 0\n"), err
    assert "it lost rank 1 (was killed by SIGKILL)" in err
    cluster.until(lambda: not cluster.left(), "nothing is left")


def test_after_a_host_died_an_elastic_job_starts_again_without_it(cluster: Cluster) -> None:
    process = cluster.run(sys.executable, "-c", GO_ON, cluster.folder, options=(
        "--elastic", "--set", "restarts=1", "--set", "restart_wait_s=0"))
    cluster.until(lambda: len(list(cluster.folder.glob("ready-*"))) == 3, "ranks are ready")
    ssh = cluster.folder / "bin" / "ssh"
    ssh.write_text(ssh.read_text().replace("export look", '[ "$node" = node3 ] && exit 255\nexport look'))
    cluster.nodes.kill("node3")
    cluster.until(lambda: len(list(cluster.job.glob("attempt-002/rank-*.json"))) == 2, "two ranks run")
    (cluster.folder / "go").touch()
    out, err = ended(process)
    assert (process.returncode, out) == (0, "end of 0\n"), err
    assert "node3 can not take ranks now: left out" in err
    cluster.until(lambda: not cluster.left(), "nothing is left")


def test_a_host_that_dies_is_named(cluster: Cluster) -> None:
    process = cluster.run(sys.executable, "-c", FAIL.replace('== "2"', '== "none"'))
    cluster.until(lambda: len(list(cluster.job.glob("attempt-001/rank-*.json"))) == 3, "ranks run")
    cluster.nodes.kill("node3")
    _, err = ended(process)
    assert process.returncode != 0
    assert "no last word from" in err
    assert "node3" in err
    cluster.until(lambda: not cluster.left(), "nothing is left")


def test_a_host_that_can_not_be_reached_is_named(cluster: Cluster) -> None:
    missing = ("--set", "hosts=[node1, node9]")
    process = cluster.run("true", options=missing)
    _, err = ended(process)
    assert process.returncode == 2
    assert "1 of 2 hosts can not take ranks: node9: " in err
    process = cluster.run("true", options=(*missing, "--set", "mpirun.ssh=false", "--set", "start_s=3", "--job",
                                           str(cluster.folder / "second")))
    _, err = ended(process)  # MPICH waits for ever, Open MPI gives up
    assert process.returncode not in (0, 1)
    assert "node9" in err or "no rank was started" in err
    cluster.until(lambda: not cluster.left(), "nothing is left")
