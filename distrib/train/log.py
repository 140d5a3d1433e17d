"""What a run tells: metrics.jsonl, TensorBoard, one live line."""

from __future__ import annotations

import errno
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from distrib.durable import replace_file
from distrib.errors import storage_errors
from distrib.rundir import RunDir
from distrib.train.board import Board
from distrib.train.records import RecordFile

_SECONDS_BETWEEN_LINES = 10.0


def keep_lines_up_to(path: Path, step: int) -> None:
    """Drop the lines of a JSON-lines file that speak of steps after ``step``, and a torn last line.

    A run that goes on from a checkpoint does the steps after it again. The file is replaced, so that a stopped writer
    that wakes up writes into the old one; on a full disk it is cut where it is. Raises StorageError.
    """
    with storage_errors(f"{path} could not be brought level with the checkpoint", "the run was not continued"):
        if not path.exists():
            return
        kept, content = [], path.read_bytes()
        for line in content.splitlines(keepends=True):
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if line.endswith(b"\n") and isinstance(record, dict) and record.get("step", 0) <= step:
                kept.append(line)
        whole = b"".join(kept)
        try:
            replace_file(path, whole)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT) or not content.startswith(whole):
                raise
            os.truncate(path, len(whole))


def _last_step(path: Path) -> int:
    """The last step that a JSON-lines file speaks of; 0 if none."""
    lines = path.read_bytes().splitlines() if path.exists() else []
    return max((int(record["step"]) for record in map(json.loads, lines) if record.get("event") == "step"), default=0)


class RunLog:
    """Writes a run's records; only rank 0 has one. A context manager. Raises StorageError when it begins; later,
    what can not be written is dropped with a note."""

    def __init__(self, run: RunDir, *, first_step: int, total_steps: int) -> None:
        keep_lines_up_to(run.metrics, first_step)
        self._line = ProgressLine(first_step, total_steps)
        with storage_errors("the metrics could not be written", "training stopped"):
            self._metrics = RecordFile(run.metrics, self.note)
            self._board = Board(run.tensorboard, self.note, first_step + 1 if first_step else None)
        self._last_step = _last_step(run.metrics)

    def steps(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Training steps, each with at least ``step`` and ``loss``; those that are logged already are left out."""
        for record in records:
            if record["step"] > self._last_step:
                self._step(record)

    def _step(self, record: Mapping[str, Any]) -> None:
        self._last_step = int(record["step"])
        self._write({"event": "step", **record})
        step = record["step"]
        self._board.add(step, {f"train/{name}": record[name] for name in ("loss", "accuracy", "lr", "images_per_s")}
                        | {f"time/{name}": record[name] for name in ("data_s", "compute_s", "communication_s",
                                                                     "rest_s")})
        self._line.show(record)

    def validation(self, step: int, scores: Mapping[str, Any]) -> None:
        self._write({"event": "validation", "step": step, "validation": dict(scores)})
        self._board.add(step, {f"val/{name}": value for name, value in scores.items()
                               if isinstance(value, int | float) and not isinstance(value, bool)})

    def node(self, step: int, host: str, reading: Mapping[str, Any]) -> None:
        """One node as it was since the last look."""
        self._write({"event": "node", "step": step, "host": host, **reading})
        self._board.add(step, {f"node/{host}/{name}": value for name, value in reading.items() if value is not None})

    def note(self, text: str) -> None:
        """One line for the user, above the live line; from any thread."""
        self._line.note(text)

    def event(self, kind: str, step: int, **details: Any) -> None:
        self._write({"event": kind, "step": step, **details})

    def _write(self, record: Mapping[str, Any]) -> None:
        self._metrics.append(json.dumps({**record, "time": round(time.time(), 3)}).encode() + b"\n")

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self._line.end()
        self._metrics.close()
        self._board.close()


class ProgressLine:
    """Step, loss, images/s and time left: redrawn in place on a terminal, a line now and then elsewhere."""

    def __init__(self, first_step: int, total_steps: int) -> None:
        self._first, self._total = first_step, total_steps
        self._started = time.monotonic()
        self._last_shown = -_SECONDS_BETWEEN_LINES
        self._live = sys.stderr.isatty()

    def show(self, record: Mapping[str, Any]) -> None:
        now = time.monotonic()
        step = int(record["step"])
        pause = 0.1 if self._live else _SECONDS_BETWEEN_LINES
        if now - self._last_shown < pause and step < self._total:
            return
        self._last_shown = now
        text = f"step {step}/{self._total}  loss {record['loss']:.4f}  {record['images_per_s']:.0f} images/s"
        if step > self._first:  # not so where a lost leader did the step and did not live to tell of it
            text += f"  {_clock((now - self._started) / (step - self._first) * (self._total - step))} left"
        self._say(f"\r\x1b[K{text}" if self._live else f"{text}\n")

    def note(self, text: str) -> None:
        self._say(f"\r\x1b[K{text}\n" if self._live else f"{text}\n")

    def end(self) -> None:
        if self._live:
            self._say("\n")

    @staticmethod
    def _say(text: str) -> None:
        sys.stderr.write(text)  # at once: print would let another thread's line come in between
        sys.stderr.flush()


def _clock(seconds: float) -> str:
    minutes, seconds_left = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds_left:02d}" if hours else f"{minutes}:{seconds_left:02d}"
