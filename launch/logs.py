"""The output of a job's ranks, passed on block by block, however long a log is."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import BinaryIO

from distrib.entry import put
from distrib.errors import ConfigError, StorageError, printable, storage_errors
from launch.job import JobFolder, open_regular
from launch.jobs import job_state

BLOCK_BYTES = 1 << 16
MAX_LINE_BYTES = 1 << 20
LOOK_S = 0.3


def show_logs(path: Path, rank: int | None, every: bool, follow: bool, tail: int | None = None) -> int:
    """Print the output of one rank (by default 0), or of all and of the launcher, each line with its origin.

    ``tail`` is how many of each log's last lines; None: all. With ``follow`` it goes on until the job ends. Raises
    ConfigError for a rank that the job does not have, StorageError for a log that can not be read.
    """
    if every and rank is not None:
        raise ConfigError("--rank and --all exclude each other", "nothing was shown", "leave one of them out")
    folder = JobFolder(path.absolute())
    job = folder.job()
    size = sum(job.counts)
    if rank is not None and rank >= size:
        raise ConfigError(f"the job {folder.path} has no rank {rank}", "nothing was shown",
                          f"choose one of 0 to {size - 1}" if size > 1 else "its only rank is 0")
    logs: dict[Path, _Log] = {}
    while True:
        running = follow and job_state(folder)["running"]
        for log in _wanted(folder, None if every else rank or 0, job.launcher):
            if log not in logs:
                logs[log] = _Log(log, f"[{log.stem.replace('-', ' ')}] " if every else "", tail)
            logs[log].pass_on()
        if not running:
            for read in logs.values():
                read.finish()
            return 0
        time.sleep(LOOK_S)


def tail_start(file: BinaryIO, lines: int) -> int:
    """Byte offset at which the last ``lines`` lines of a file begin; it is read by blocks from its end."""
    start = file.seek(0, os.SEEK_END)
    wanted = lines
    ending = True  # the newline that ends the last line begins none
    while start and wanted > 0:
        end, start = start, max(0, start - BLOCK_BYTES)
        file.seek(start)
        block = file.read(end - start)
        at = len(block) - (ending and block.endswith(b"\n"))
        ending = False
        while (at := block.rfind(b"\n", 0, at)) >= 0:
            wanted -= 1
            if not wanted:
                return start + at + 1
    return start


def _wanted(folder: JobFolder, rank: int | None, launcher: str) -> list[Path]:
    with storage_errors(f"the logs of {folder.path} can not be read", "nothing more was shown"):
        names = os.listdir(folder.logs)
    if rank is None:
        return sorted((folder.logs / name for name in names), key=lambda log: (len(log.stem), log.name))
    if rank == 0 and launcher == "local":
        return [folder.launch_log]  # its streams are the launcher's
    return [folder.output(rank, "out"), folder.output(rank, "err")]


class _Log:
    """A growing log; what is new of it goes to stdout, from stderr's log to stderr."""

    def __init__(self, path: Path, prefix: str, tail: int | None) -> None:
        self._path, self._prefix, self._tail = path, prefix, tail
        self._end, self._rest = 0, b""

    def pass_on(self) -> None:
        """Print the whole lines that the log holds now beyond those printed. Raises StorageError."""
        try:
            with open_regular(self._path) as file:
                if self._tail is not None:
                    self._end, self._tail = tail_start(file, self._tail), None
                size = file.seek(0, os.SEEK_END)  # a log may grow faster than it is shown
                file.seek(self._end)
                while block := file.read(min(BLOCK_BYTES, max(0, size - self._end))):
                    self._end += len(block)
                    lines, self._rest = _whole_lines(self._rest + block)
                    self._print(lines)
        except FileNotFoundError:
            return
        except OSError as error:
            raise StorageError(f"the log {self._path} can not be read: {error.strerror}", "nothing more was shown",
                               "look at what has its name: only launch writes into that folder") from error

    def finish(self) -> None:
        """Print a last line without an end."""
        if self._rest:
            self._print([self._rest])

    def _print(self, lines: list[bytes]) -> None:
        text = "".join(f"{self._prefix}{_clean(part)}\n" for line in lines
                       for part in line.decode(errors="replace").splitlines() or [""])
        if self._path.suffix == ".err":
            print(text, end="", file=sys.stderr, flush=True)
        elif text:
            put(text, end="")


def _whole_lines(text: bytes) -> tuple[list[bytes], bytes]:
    """(lines that have their end, the rest); a progress bar ends its lines by a carriage return alone."""
    known = len(text) - text.endswith(b"\r")  # which a newline may yet follow
    end = max(text.rfind(b"\n", 0, known), text.rfind(b"\r", 0, known)) + 1
    if len(text) - end > MAX_LINE_BYTES:
        end = len(text)
    return text[:end].splitlines(), text[end:]


def _clean(line: str) -> str:
    if line.isprintable():
        return line
    return "".join(c if c.isprintable() or c == "\t" else printable(c) for c in line)
