"""The event file that TensorBoard reads.

Written here because the thread of TensorBoard's own writer dies of the first error of the file system, with a
traceback, and leaves a torn event behind, at which a reader stops.
"""

from __future__ import annotations

import io
import os
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from distrib.train.records import RecordFile


class Board:
    """One event file. Raises OSError when it is made, later nothing."""

    def __init__(self, folder: Path, tell: Callable[[str], None], purge_step: int | None) -> None:
        """``purge_step``: a viewer forgets what earlier files say of this step and later ones."""
        folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{time.time():010.0f}.{socket.gethostname()}.{os.getpid()}.{time.monotonic_ns()}"
        self._file = RecordFile(folder / name, tell)
        self._event(file_version="brain.Event:2")
        if purge_step is not None:
            from tensorboard.compat.proto.event_pb2 import SessionLog

            self._event(step=purge_step, session_log=SessionLog(status=SessionLog.START))

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Scalars by tag."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        self._event(step=step, summary=Summary(
            value=[Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]))

    def close(self) -> None:
        self._file.close()

    def _event(self, **fields: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter

        framed = io.BytesIO()
        RecordWriter(framed).write(Event(wall_time=time.time(), **fields).SerializeToString())
        self._file.append(framed.getvalue())
