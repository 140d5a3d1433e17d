"""Jobs by their folders alone: what is shown of them."""

from __future__ import annotations

import json
import os
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from distrib.errors import DistribError
from launch import cli, keeper, logs
from launch.cli import main
from launch.job import Job, JobFolder, Start
from launch.keeper import SILENT_S, identity
from tests.conftest import PYTHON
from tests.conftest import Start as StartProcess


def make_job(path: Path, *, launcher: str = "mpirun", size: int = 3) -> JobFolder:
    folder = JobFolder(path)
    folder.create(Job(
        name="a job", launcher=launcher, command=("true",), cwd="/", environment={}, mine={}, threads_per_rank=1,
        comm_cores=0, hyper_threads=False, allocator="system", interface=None, stop_grace_s=1.0, attached=False,
        elastic=False, hosts=("node1",), counts=(size,), cluster={}))
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> JobFolder:
    return make_job(tmp_path / "job")


def test_logs_of_one_rank_and_of_all(folder: JobFolder, capsys: pytest.CaptureFixture[str]) -> None:
    folder.output(0, "out").write_bytes(b"one\n\n\x1b[2Jtwo \xff\r\nbar 1\rbar 2\rno end")
    folder.output(0, "err").write_text("wrong\n")
    folder.output(2, "out").write_text("third\n")
    folder.launch_log.write_text("said\n")
    assert main(["logs", str(folder.path)]) == 0
    said = capsys.readouterr()
    assert said.out == "one\n\n\\x1b[2Jtwo \ufffd\nbar 1\nbar 2\nno end\n"
    assert said.err == "wrong\n"
    assert main(["logs", str(folder.path), "--all", "--tail", "1"]) == 0
    assert set(capsys.readouterr().out.splitlines()) == {
        "[launch] said", "[rank 0] bar 1", "[rank 0] bar 2", "[rank 0] no end", "[rank 2] third"}


def test_of_a_long_log_only_some_blocks_are_in_memory(folder: JobFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["logs", str(folder.path)]) == 0
    monkeypatch.setattr(logs, "put", lambda text, end: None)
    folder.output(0, "out").write_text(f"{'x' * 1000}\n" * 32_000)
    tracemalloc.start()
    try:
        assert main(["logs", str(folder.path)]) == 0
        assert tracemalloc.get_traced_memory()[1] < 24 << 20  # job.json is read with room for 16 MiB
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("ending", ["\n", ""])
@pytest.mark.parametrize("block", [1, 3, 7, 1 << 16])
def test_the_last_lines_are_found_from_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int,
                                               ending: str) -> None:
    monkeypatch.setattr(logs, "BLOCK_BYTES", block)
    lines = ["first", "", "third", "", ""]
    path = tmp_path / "log"
    path.write_text("\n".join(lines) + (ending and "last\n"))
    expected = path.read_text().splitlines(keepends=True)
    with path.open("rb") as file:
        for count in range(8):
            file.seek(logs.tail_start(file, count))
            assert file.read().decode() == "".join(expected[len(expected) - count:] if count < len(expected)
                                                   else expected)


@pytest.mark.parametrize(("words", "told"), [
    (["--rank", "3"], "has no rank 3. Nothing was shown. Choose one of 0 to 2."),
    (["--rank", "1", "--all"], "--rank and --all exclude each other"),
    (["--rank", "0", "--all"], "--rank and --all exclude each other"),
])
def test_wrong_ranks_are_told(folder: JobFolder, capsys: pytest.CaptureFixture[str], words: list[str],
                              told: str) -> None:
    assert main(["logs", str(folder.path), *words]) == DistribError.exit_code
    assert told in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--rank", "1"], ["--all"]])
@pytest.mark.parametrize("damage", ["folder", "pipe", "no folder of logs", "job"])
def test_a_damaged_folder_is_one_error(folder: JobFolder, capsys: pytest.CaptureFixture[str], words: list[str],
                                       damage: str) -> None:
    match damage:
        case "folder":
            folder.output(1, "err").mkdir()
        case "pipe":
            os.mkfifo(folder.output(1, "out"))
        case "no folder of logs":
            folder.logs.rmdir()
            folder.logs.touch()
        case "job":
            (folder.path / "job.json").unlink()
            os.mkfifo(folder.path / "job.json")
    assert main(["logs", str(folder.path), *words]) == DistribError.exit_code
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert "can not be read" in line


def test_rank_0_of_a_local_job_is_in_the_launchers_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_job(tmp_path / "job", launcher="local")
    folder.launch_log.write_text("said\n")
    assert main(["logs", str(folder.path)]) == 0
    assert capsys.readouterr().out == "said\n"


KEEP = """\
import signal, sys
from pathlib import Path
from launch.job import JobFolder
from launch.keeper import keeping
with keeping(JobFolder(Path(sys.argv[1]))):
    print("runs", flush=True)
    signal.pause()
"""


def status(folder: JobFolder, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert main(["status", str(folder.path), "--json"]) == 0
    said: dict[str, Any] = json.loads(capsys.readouterr().out)
    return said


def test_a_job_whose_launcher_was_killed_is_lost(folder: JobFolder, start: StartProcess,
                                                 capsys: pytest.CaptureFixture[str]) -> None:
    folder.begin(Start(("node1",), (3,), "node1", 20000))
    launcher = start(PYTHON, "-c", KEEP, folder.path)
    assert launcher.stdout is not None
    assert launcher.stdout.readline() == "runs\n"
    assert status(folder, capsys)["state"] == "running"
    launcher.kill()
    launcher.wait()
    said = status(folder, capsys)
    assert said["state"] == "lost"
    assert f"process {launcher.pid} on " in said["reason"]
    assert {rank["state"] for rank in said["ranks"]} == {"never started"}
    folder.output(0, "out").write_text("so far\n")
    assert main(["logs", str(folder.path), "--follow"]) == 0
    assert capsys.readouterr().out == "so far\n"


def test_a_job_whose_launcher_ended_has_ended(folder: JobFolder, start: StartProcess,
                                              capsys: pytest.CaptureFixture[str]) -> None:
    launcher = start(PYTHON, "-c", KEEP.replace("signal.pause()", "sys.exit(3)"), folder.path)
    launcher.communicate(timeout=60)
    assert status(folder, capsys)["state"] == "ended"


def test_of_a_launcher_elsewhere_the_signs_of_life_are_counted(folder: JobFolder,
                                                               capsys: pytest.CaptureFixture[str]) -> None:
    folder.write(folder.keeper, {**identity(os.getpid()), "started": "1", "counted_by": "another boot"})
    assert status(folder, capsys)["state"] == "running"
    old = folder.keeper.stat().st_mtime - 2 * SILENT_S
    os.utime(folder.keeper, (old, old))
    assert status(folder, capsys)["state"] == "lost"


def test_a_launcher_gives_signs_of_life(folder: JobFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper, "BEAT_S", 0.01)
    with keeper.keeping(folder):
        os.utime(folder.keeper, (0, 0))
        while folder.keeper.stat().st_mtime == 0:
            time.sleep(0.01)


@pytest.mark.parametrize("record", [{}, {"pid": -1, "started": None}, {"pid": "x", "started": "1"}, {"pid": 1}])
def test_a_damaged_record_is_nobodys(folder: JobFolder, capsys: pytest.CaptureFixture[str],
                                     record: dict[str, Any]) -> None:
    folder.write(folder.submitted, {"launcher": "mpirun", "counted_by": identity(1)["counted_by"], **record})
    assert status(folder, capsys)["state"] == "lost"
    assert main(["cancel", str(folder.path)]) == 0
    assert "has ended already" in capsys.readouterr().out


def test_ctrl_c_before_ranks_is_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_plan", interrupted)
    assert main(["run", "here.yaml", "--", "true"]) == 130
    assert capsys.readouterr().err.strip() == "launch: interrupted, while no rank was running"


@pytest.mark.parametrize("words", [[], ["--array", "0-1"], ["--job", "mine"]])
def test_a_job_that_was_not_taken_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                   words: list[str]) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))  # no sbatch
    Path("mine").mkdir()
    Path("mine/notes").touch()
    Path("c.yaml").write_text("launcher: slurm\nranks_per_node: 1\nallocator: system\nnode: {cores_per_socket: 1}\n")
    assert main(["submit", "c.yaml", *words, "--", PYTHON, "-V"]) == 2
    assert sorted(str(path) for path in Path().rglob("*")) == ["c.yaml", "mine", "mine/notes"]
