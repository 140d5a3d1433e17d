"""Records are whole or absent on storage that fails, and what is missing is counted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

from distrib.comm.group import Group
from distrib.data.stream import Batch
from distrib.errors import StorageError
from distrib.rundir import RunDir
from distrib.train.board import Board
from distrib.train.ledger import Ledger
from distrib.train.log import RunLog
from distrib.train.records import RecordFile
from distrib.world import World
from tests.rig.disk import SmallDisk, small_disk

LINE = b'{"text": "' + b"x" * 988 + b'"}\n'  # 1001 bytes: what fits on a page is never whole lines


def lines(path: Path) -> list[bytes]:
    found = path.read_bytes().splitlines(keepends=True)
    assert all(line == LINE for line in found)
    return found


def test_a_full_disk_drops_whole_records_and_counts_them(tmp_path: Path) -> None:
    told: list[str] = []
    with small_disk(tmp_path / "disk", "64k") as disk:
        path = disk.path / "lines"
        records = RecordFile(path, told.append, retry_s=0)
        records.append(LINE)
        filler = disk.fill()
        for _ in range(9):
            records.append(LINE)
        assert len(lines(path)) == 4  # its first page
        [warning] = told
        assert f"{path} could not be written: No space left on device. Training goes on" in warning
        filler.unlink()
        for _ in range(3):
            records.append(LINE)
        assert len(lines(path)) == 7
        assert told[1:] == [f"note: {path} can be written again; 6 records are missing from it"]
        disk.fill()
        for _ in range(9):
            records.append(LINE)
        records.close()
        records.close()
        whole = len(lines(path))
        assert len(told) == 4
        assert told[-1] == f"warning: {7 + 9 - whole} records are missing at the end of {path}"


def test_storage_that_is_gone_gets_no_new_file_and_is_used_again_when_back(tmp_path: Path) -> None:
    told: list[str] = []
    path = tmp_path / "run" / "lines"
    path.parent.mkdir()
    records = RecordFile(path, told.append, retry_s=0)
    records.append(LINE)
    path.rename(tmp_path / "lines")
    (tmp_path / "lines").unlink()
    records.append(LINE)
    assert not path.exists()
    path.write_bytes(LINE)
    records.append(LINE)
    records.close()
    assert len(lines(path)) == 2
    assert [text.partition(":")[0] for text in told] == ["warning", "note"]


def test_between_tries_records_are_dropped_untried(tmp_path: Path) -> None:
    told: list[str] = []
    path = tmp_path / "lines"
    records = RecordFile(path, told.append, retry_s=1000)
    path.unlink()
    records.append(LINE)
    path.touch()
    records.append(LINE)
    records.close()
    assert path.read_bytes() == b""
    assert told[1:] == [f"warning: 2 records are missing at the end of {path}"]


def test_a_file_that_can_not_be_made_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(NotADirectoryError):
        RecordFile(Path("/dev/null/lines"), pytest.fail)
    (tmp_path / "tensorboard").touch()
    with pytest.raises(StorageError, match="the metrics could not be written"):
        RunLog(RunDir(tmp_path), first_step=0, total_steps=1)


def test_tensorboard_reads_the_event_files(tmp_path: Path) -> None:
    board = Board(tmp_path, pytest.fail, None)
    board.add(1, {"train/loss": 0.5, "train/lr": 0.25})
    board.close()
    board = Board(tmp_path, pytest.fail, 2)
    board.add(2, {"train/loss": 0.125})
    board.close()
    first, second = sorted(tmp_path.iterdir())
    assert next(event.file_version for event in EventFileLoader(str(first)).Load()) == "brain.Event:2"
    read = [(event.step, value.tag, value.tensor.float_val[0]) for path in (first, second)
            for event in EventFileLoader(str(path)).Load() for value in event.summary.value]
    assert read == [(1, "train/loss", 0.5), (1, "train/lr", 0.25), (2, "train/loss", 0.125)]
    starts = [event.step for event in EventFileLoader(str(second)).Load() if event.HasField("session_log")]
    assert starts == [2]  # purges what was told of step 2 and later


def test_a_ledger_that_can_not_be_written_stops_without_a_traceback(tmp_path: Path) -> None:
    batch = Batch(0, np.zeros((1, 2, 2, 3), np.uint8), np.zeros(1, np.int64), np.zeros(1, np.int64))
    with small_disk(tmp_path / "disk", "64k") as disk, Group(World()) as group:
        run = RunDir(disk.path)
        with pytest.raises(StorageError, match=r"ledger could not be written: No space left.* a proof with gaps"):
            overfill(run, group, batch, disk)


def overfill(run: RunDir, group: Group, batch: Batch, disk: SmallDisk) -> None:
    with Ledger(run, ["k" * 5000], group, 0) as ledger:
        disk.fill()
        ledger(1, [batch])
