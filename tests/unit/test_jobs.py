"""Jobs by their folders alone: what is shown of them."""

from __future__ import annotations

import os
import tracemalloc
from pathlib import Path

import pytest

from distrib.errors import DistribError
from launch import logs
from launch.cli import main
from launch.job import Job, JobFolder


def make_job(path: Path, *, launcher: str = "mpirun", size: int = 3) -> JobFolder:
    folder = JobFolder(path)
    folder.create(Job(
        name="a job", launcher=launcher, command=("true",), cwd="/", environment={}, mine={}, threads_per_rank=1,
        comm_cores=0, hyper_threads=False, allocator="system", interface=None, stop_grace_s=1.0, attached=False,
        hosts=("node1",), counts=(size,), cluster={}))
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
