from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distrib.errors import StorageError
from distrib.rundir import RunDir
from distrib.train.log import ProgressLine, RunLog, keep_lines_up_to


def line(step: int, **more: Any) -> bytes:
    return json.dumps({"event": "step", "step": step, **more}).encode() + b"\n"


def kept(path: Path, content: bytes, step: int) -> bytes:
    path.write_bytes(content)
    keep_lines_up_to(path, step)
    return path.read_bytes()


def test_lines_after_the_resumed_step_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    note = b'{"event": "note"}\n'  # of no step
    lines = [note, line(1), line(2), line(2, validation=1), line(3), line(2, again=True), line(10)]
    assert kept(path, b"".join(lines), 2) == b"".join([note, line(1), line(2), line(2, validation=1),
                                                       line(2, again=True)])
    assert kept(path, b"".join(lines), 0) == note
    assert kept(path, b"".join(lines), 10) == b"".join(lines)
    assert kept(path, b"", 5) == b""


@settings(max_examples=60)
@given(cut=st.integers(1, len(line(3)) - 1))
def test_a_torn_last_line_is_dropped_wherever_it_was_torn(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    path = tmp_path_factory.mktemp("log") / "metrics.jsonl"
    # Also where only the line's end is missing: the next record would be glued to it.
    assert kept(path, line(1) + line(2) + line(3)[:cut], 5) == line(1) + line(2)


@pytest.mark.parametrize("rubbish", [b"\0\0\0\0\n", b"[1, 2]\n", b"\xff\xfe\n", b"7\n", b"\n"])
def test_rubbish_in_between_is_dropped(tmp_path: Path, rubbish: bytes) -> None:
    assert kept(tmp_path / "metrics.jsonl", line(1) + rubbish + line(2), 5) == line(1) + line(2)


def test_no_file_is_no_error_and_none_is_made(tmp_path: Path) -> None:
    keep_lines_up_to(tmp_path / "metrics.jsonl", 3)
    assert list(tmp_path.iterdir()) == []


def test_what_can_not_be_rewritten_is_told(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(StorageError, match=r"metrics\.jsonl could not be brought level with the checkpoint"):
        keep_lines_up_to(tmp_path / "metrics.jsonl", 3)


def test_a_full_disk_does_not_keep_the_log_from_going_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("distrib.train.log.replace_file", full)
    path = tmp_path / "metrics.jsonl"
    assert kept(path, line(1) + line(2) + line(3), 2) == line(1) + line(2)
    with pytest.raises(StorageError):
        kept(path, line(3) + line(1), 2)  # what is kept does not stand at the beginning


def record(step: int) -> dict[str, Any]:
    return {"step": step, "loss": 1 / step, "accuracy": 0.5, "lr": 0.1, "images_per_s": 10.0, "data_s": 0.1,
            "compute_s": 0.2, "communication_s": 0.0, "rest_s": 0.0}


def test_a_resumed_log_has_every_step_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = RunDir(tmp_path)
    with RunLog(run, first_step=0, total_steps=6) as log:
        for step in (1, 2, 3, 4):
            log.steps([record(step)])
            if step % 2 == 0:
                log.validation(step, {"score": step / 10, "loss": 2.0, "per_class": {"a": 1}, "defined": True})
        log.event("stopped", 4, why="asked")
    with run.metrics.open("ab") as file:
        file.write(b'{"event": "step", "st')
    with RunLog(run, first_step=2, total_steps=6) as log:
        for step in (3, 4, 5, 6):
            log.steps([record(step)])
        log.note("a note")
    lines = [json.loads(text) for text in run.metrics.read_text().splitlines()]
    assert [entry["step"] for entry in lines if entry["event"] == "step"] == [1, 2, 3, 4, 5, 6]
    assert [entry["validation"]["score"] for entry in lines if entry["event"] == "validation"] == [0.2]
    assert all(entry["loss"] == 1 / entry["step"] for entry in lines if entry["event"] == "step")
    assert not any(entry["event"] == "stopped" for entry in lines)
    assert list(run.tensorboard.glob("events.out.tfevents.*"))
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "step 6/6" in captured.err
    assert "a note" in captured.err


def test_progress_tells_the_first_and_last_step_and_does_not_flood(capsys: pytest.CaptureFixture[str],
                                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("distrib.train.log.time.monotonic", lambda: now)
    progress = ProgressLine(100, 3700)
    for step in range(101, 3701):
        now += 1.0
        progress.show(record(step))
    progress.end()
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("step 101/3700  loss 0.0099  10 images/s  59:59 left")
    assert lines[1].startswith("step 111/3700")
    assert lines[-1].endswith("0:00 left")
    assert len(lines) <= 361
    progress = ProgressLine(0, 10_000)
    now += 1
    progress.show(record(1))
    assert "2:46:39 left" in capsys.readouterr().err


@pytest.mark.parametrize("period", [1, 4])
def test_steps_that_a_lost_leader_did_not_record_are_told_by_the_next(tmp_path: Path, period: int,
                                                                      capsys: pytest.CaptureFixture[str]) -> None:
    run = RunDir(tmp_path)
    with RunLog(run, first_step=0, total_steps=9) as log:
        log.steps([record(1)])
    done = 1 + period
    with RunLog(run, first_step=done, total_steps=9) as log:
        log.steps([record(step) for step in range(2, done + 1)])
    lines = [json.loads(text) for text in run.metrics.read_text().splitlines()]
    assert [entry["step"] for entry in lines] == list(range(1, done + 1))
    shown = capsys.readouterr().err.splitlines()
    assert shown[-1] == "step 2/9  loss 0.5000  10 images/s"  # the time that is left is not known yet
