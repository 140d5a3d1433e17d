"""The folder of a job that runs on other hosts: what each rank is told, and what it leaves. Standard library only.

::

    job.json             what to run, and how; readable by its owner alone, as it holds the environment
    job.sbatch           for Slurm
    submitted.json       where a submitted job runs
    keeper.json          which process runs it; not where Slurm knows
    log/rank-N.out .err  output of the ranks, of every attempt
    log/launch.log       of a submitted job: what the launcher said
    attempt-NNN/
        start.json       which hosts carry which ranks, and where they meet
        rank-N.json      where a rank runs, and in the end how it ended
        error-N.json     its last error (torch's convention)

The folder must lie on a file system that all hosts share. Files appear whole, by renaming.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import stat
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from distrib.errors import StorageError, WorldError, storage_errors
from launch.report import Ending

MAX_BYTES = 1 << 24


@dataclass(frozen=True)
class Job:
    """What is the same for all ranks and attempts."""

    name: str
    launcher: str
    command: tuple[str, ...]
    cwd: str
    environment: dict[str, str]
    """Over the environment that mpirun's daemon or Slurm gives a rank."""
    mine: dict[str, str]
    """The cluster file's `env`: over everything."""
    threads_per_rank: int | None
    comm_cores: int
    hyper_threads: bool
    allocator: str
    interface: str | None
    elastic: bool
    """Whether the others go on when a rank is lost."""
    stop_grace_s: float
    attached: bool
    """Whether rank 0's streams are the launcher's, rather than files."""
    hosts: tuple[str, ...]
    """In the order of ranks; under Slurm no names yet."""
    counts: tuple[int, ...]
    """Ranks of each host."""
    cluster: dict[str, Any]
    """The whole cluster file, for the process that runs the job."""


@dataclass(frozen=True)
class Start:
    """One attempt to run a job."""

    hosts: tuple[str, ...]
    counts: tuple[int, ...]
    """Ranks of each host, in the order of ranks."""
    master_addr: str
    master_port: int

    @property
    def size(self) -> int:
        """Number of ranks."""
        return sum(self.counts)

    def node_of(self, rank: int) -> int:
        """Index of the host that carries a rank."""
        for node, count in enumerate(self.counts):
            if rank < count:
                return node
            rank -= count
        raise ValueError(f"there is no rank {rank}")


@dataclass(frozen=True)
class RankReport:
    """Where a rank runs, and how it ended."""

    rank: int
    host: str
    cpus: str
    comm_cpus: str
    memory_node: int | None
    threads: int
    started: float
    """Seconds since the epoch, by the host's clock."""
    ended: float | None = None
    code: int | None = None
    """Exit code, or minus the number of the signal; None while it runs."""
    unasked: bool = True
    """Whether it ended before it was told to."""
    sign: int = 0
    """Grows while the rank runs in an elastic job: a sign that its host lives."""


class JobFolder:
    """Paths, reading and writing. StorageError: the file system refuses; WorldError: foreign content."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.logs = path / "log"
        self.script = path / "job.sbatch"
        self.submitted = path / "submitted.json"
        self.keeper = path / "keeper.json"
        self.launch_log = self.logs / "launch.log"

    def create(self, job: Job) -> None:
        """Make the folder. Raises StorageError if it holds a job already."""
        with storage_errors(f"the job folder {self.path} could not be made", "nothing was started"):
            self.logs.mkdir(parents=True, exist_ok=True)
            if (self.path / "job.json").exists():
                raise StorageError(f"the job folder {self.path} holds a job already", "nothing was started",
                                   "choose another with --job, or remove it")
        self.write(self.path / "job.json", asdict(job))

    def discard(self) -> None:
        """Remove a job that nobody will run, and its folder, with launch-jobs, if nothing else is in it."""
        for task in self.path.glob("task-[0-9]*"):
            JobFolder(task).discard()
        parent = [self.path.parent] if self.path.parent.name == "launch-jobs" else []
        with contextlib.suppress(OSError):  # what can not be removed is in nobody's way
            for file in (self.path / "job.json", self.script):
                file.unlink(missing_ok=True)
            for folder in (self.logs, self.path, *parent):
                folder.rmdir()

    def attempt(self, number: int) -> Path:
        """The folder of an attempt, counted from 1."""
        return self.path / f"attempt-{number:03d}"

    def last_attempt(self) -> int:
        """Number of the newest attempt; 0 if there is none."""
        numbers = [int(path.name.removeprefix("attempt-")) for path in self.path.glob("attempt-[0-9]*")
                   if path.name.removeprefix("attempt-").isdigit()]
        return max(numbers, default=0)

    def begin(self, start: Start) -> int:
        """Make the folder of the next attempt; its number."""
        number = self.last_attempt() + 1
        with storage_errors("the attempt's folder could not be made", "nothing was started"):
            self.attempt(number).mkdir()
        self.write(self.attempt(number) / "start.json", asdict(start))
        return number

    def job(self) -> Job:
        """The job."""
        values = self.read(self.path / "job.json")
        try:
            return Job(**{**values, "command": tuple(values["command"]), "hosts": tuple(values["hosts"]),
                          "counts": tuple(values["counts"])})
        except (TypeError, KeyError) as error:
            raise WorldError(f"{self.path / 'job.json'} is no job of this version of launch", "nothing was started",
                             "submit it again") from error

    def start(self, number: int) -> Start:
        """An attempt's start."""
        values = self.read(self.attempt(number) / "start.json")
        try:
            return Start(tuple(values["hosts"]), tuple(values["counts"]), values["master_addr"], values["master_port"])
        except (TypeError, KeyError) as error:
            raise WorldError(f"{self.attempt(number)} is no attempt of this version of launch", "nothing was started",
                             "submit the job again") from error

    def output(self, rank: int, stream: str) -> Path:
        """A rank's log; ``stream`` is out or err."""
        return self.logs / f"rank-{rank}.{stream}"

    def error_file(self, number: int, rank: int) -> Path:
        """Where a rank may leave its error."""
        return self.attempt(number) / f"error-{rank}.json"

    def put_report(self, number: int, report: RankReport) -> None:
        """Written by the rank's supervisor, at its start and at its end."""
        self.write(self.attempt(number) / f"rank-{report.rank}.json", asdict(report))

    def reports(self, number: int) -> dict[int, RankReport]:
        """Of the ranks that have started so far."""
        found = {}
        with (storage_errors(f"{self.attempt(number)} can not be read", "how its ranks do is not known"),
              os.scandir(self.attempt(number)) as entries):
            names = [entry.name for entry in entries if entry.name.startswith("rank-") and entry.name.endswith(".json")]
        for name in names:
            try:
                report = RankReport(**self.read(self.attempt(number) / name))
            except (WorldError, StorageError, TypeError):
                continue  # half visible yet, on a network file system
            found[report.rank] = report
        return found

    def endings(self, number: int, reports: Mapping[int, RankReport]) -> list[Ending]:
        """How ranks ended, with their own words."""
        found = []
        for rank, report in reports.items():
            if report.code is not None and report.ended is not None:
                error, wrote_at, kind = read_error(self.error_file(number, rank))
                found.append(Ending(rank, report.code, wrote_at or report.ended, report.unasked, error, kind))
        return found

    def submitted_record(self) -> dict[str, Any] | None:
        """What `launch submit` wrote; None if the job was not submitted."""
        return self.read(self.submitted) if self.submitted.exists() else None

    @staticmethod
    def write(path: Path, values: Mapping[str, Any]) -> None:
        """Replace a JSON file as a whole, flushed to the disk; readable by its owner alone."""
        with storage_errors(f"{path} could not be written", "the job can not go on"):
            temporary = path.with_name(f".{path.name}.{os.getpid()}")
            file = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with open(file, "w") as stream:
                json.dump(values, stream)
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(path)

    @staticmethod
    def read(path: Path) -> dict[str, Any]:
        """A JSON object from a file."""
        with storage_errors(f"{path} can not be read", "nothing was started"), open_regular(path) as file:
            raw = file.read(MAX_BYTES)
        try:
            values = json.loads(raw)
        except (ValueError, RecursionError):
            values = None
        if not isinstance(values, dict):
            raise WorldError(f"{path} is damaged", "nothing was started", "submit the job again")
        return values


def open_regular(path: Path) -> BinaryIO:
    """Open a file for reading. Raises OSError also where something else has its name: a pipe would wait for ever."""
    file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))  # noqa: SIM115
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "it is no regular file", str(path))
    return file


def read_error(path: Path) -> tuple[str, float | None, str]:
    """The message that a rank left, when, and the error's class if it is one of ours; or nothing."""
    try:
        when = path.stat().st_mtime
        with open_regular(path) as file:
            record = json.loads(file.read(1 << 16))
        message, kind = record["message"], str(record.get("kind", ""))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return "", None, ""
    text = message.get("message", "") if isinstance(message, dict) else message
    return "".join(c if c.isprintable() else " " for c in str(text)).strip(), when, kind


def read_tail(path: Path, lines: int, start: int = 0) -> tuple[str, ...]:
    """The last lines of a log that are not empty, from a byte offset on; none if there is no such file."""
    try:
        with open_regular(path) as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(start, end - (1 << 14)))
            text = file.read().decode(errors="replace")
    except OSError:
        return ()
    clean = ["".join(c if c.isprintable() else " " for c in line).rstrip() for line in text.splitlines()]
    return tuple([line for line in clean if line][-lines:])
