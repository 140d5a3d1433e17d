"""Where the ranks' output goes: rank 0's straight to the launcher's own streams, the others' into log files."""

from __future__ import annotations

import contextlib
import os
import selectors
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType

from distrib.errors import storage_errors
from launch.follow import Follower
from launch.job import read_error, read_tail

MAX_LINE_BYTES = 1 << 16
TAIL_LINES = 12
LOOK_S = 0.25
"""How often logs that are followed are looked at."""
DRAIN_CHUNKS = 256
"""At most so much of what a rank still writes is passed on before it is told to end."""


class Output:
    """The log folder and the relayed pipes of one launch. A context manager; local.

    ``folder`` None: a temporary folder, removed at the end unless `keep` was called. With ``relay`` the output of
    ranks 1 and up also goes to stderr, each line with its rank before it.
    """

    def __init__(self, folder: Path | None, num_ranks: int, relay: bool) -> None:
        self._relay = relay
        self._temporary = folder is None
        self._follower: Follower | None = None
        self._open: dict[int, _Pipe] = {}
        self._starts: dict[tuple[int, str], int] = {}
        with storage_errors("the folder for the ranks' output could not be made", "nothing was started"):
            if folder:
                folder.mkdir(parents=True, exist_ok=True)
            elif num_ranks > 1:
                folder = Path(tempfile.mkdtemp(prefix="launch-"))
            self._errors = Path(tempfile.mkdtemp(prefix="launch-errors-"))
        self.folder = folder

    def __enter__(self) -> Output:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        for fd in list(self._open):
            self._close(fd)
        shutil.rmtree(self._errors, ignore_errors=True)
        if self._temporary and self.folder:
            shutil.rmtree(self.folder, ignore_errors=True)

    def keep(self) -> None:
        """Leave the temporary folder where it is."""
        self._temporary = False

    def error_file(self, rank: int) -> Path:
        """Where a rank may leave its error, as JSON (torch's convention)."""
        return self._errors / f"rank-{rank}.json"

    def start(self, argv: list[str], environment: dict[str, str], rank: int,
              selector: selectors.BaseSelector) -> subprocess.Popen[bytes]:
        """Start a rank in a session of its own, with its streams connected. Raises OSError."""
        self.error_file(rank).unlink(missing_ok=True)  # an earlier process's
        environment = {**environment, "TORCHELASTIC_ERROR_FILE": str(self.error_file(rank))}
        if rank == 0:
            return subprocess.Popen(argv, env=environment, start_new_session=True)
        assert self.folder is not None
        fds, reads = [], []
        try:
            for name in ("out", "err"):
                log = os.open(self.folder / f"rank-{rank}.{name}",
                              os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
                fds.append(log)
                self._starts[rank, name] = os.fstat(log).st_size
                if self._relay:
                    read, write = os.pipe2(os.O_CLOEXEC)
                    fds[-1] = write
                    self._open[read] = _Pipe(log, f"[rank {rank}] ".encode())
                    reads.append(read)
            process = subprocess.Popen(argv, env=environment, start_new_session=True, stdin=subprocess.DEVNULL,
                                       stdout=fds[0], stderr=fds[1])
        finally:
            for fd in fds:
                os.close(fd)
        for read in reads:
            os.set_blocking(read, False)
            selector.register(read, selectors.EVENT_READ, self)
        return process

    def pump(self, fd: int, selector: selectors.BaseSelector) -> bool:
        """Pass on what a pipe holds, and return whether there may be more."""
        try:
            chunk = os.read(fd, MAX_LINE_BYTES)
        except BlockingIOError:
            return False
        if not chunk:
            selector.unregister(fd)
            self._close(fd)
            return False
        pipe = self._open[fd]
        _write(pipe.log, chunk)
        *lines, pipe.rest = (pipe.rest + chunk).split(b"\n")
        if len(pipe.rest) > MAX_LINE_BYTES:
            lines, pipe.rest = [*lines, pipe.rest], b""
        _write(2, b"".join(pipe.prefix + line + b"\n" for line in lines))
        return True

    def drain(self, selector: selectors.BaseSelector) -> None:
        """Pass on what is left in the pipes and logs, without waiting for more."""
        self.pass_on()
        for fd in list(self._open):
            for _ in range(DRAIN_CHUNKS):
                if not self.pump(fd, selector):
                    break

    def error_of(self, rank: int) -> tuple[str, float | None, str]:
        """See `read_error`."""
        return read_error(self.error_file(rank))

    def tail_of(self, rank: int) -> tuple[str, ...]:
        """The last lines that a rank wrote to stderr in this launch; none for rank 0."""
        if rank == 0 or self.folder is None:
            return ()
        return read_tail(self.folder / f"rank-{rank}.err", TAIL_LINES, self._starts.get((rank, "err"), 0))

    def follow_others(self) -> None:
        """From now on pass on to stderr what all but rank 0 write there in this launch: one of them speaks for all."""
        assert self.folder is not None
        if not self._relay and self._follower is None:
            self._follower = Follower([(rank, self.folder / f"rank-{rank}.err", start)
                                       for (rank, name), start in self._starts.items() if name == "err"])

    def pass_on(self) -> float:
        """What is new in the logs that are followed; seconds until it should be asked again."""
        if self._follower is None:
            return float("inf")
        self._follower.pass_on()
        return LOOK_S

    def stand_in(self, rank: int) -> None:
        """Pass on to stdout what a rank wrote there: rank 0, which speaks for all, was lost."""
        assert self.folder is not None
        copy_to_stdout(self.folder / f"rank-{rank}.out", self._starts[rank, "out"])

    def _close(self, fd: int) -> None:
        pipe = self._open.pop(fd)
        if pipe.rest:
            _write(2, pipe.prefix + pipe.rest + b"\n")
        os.close(pipe.log)
        os.close(fd)


class _Pipe:
    """The reading end of one stream of one rank."""

    def __init__(self, log: int, prefix: bytes) -> None:
        self.log, self.prefix, self.rest = log, prefix, b""


def copy_to_stdout(log: Path, start: int) -> None:
    """Pass on a log from a byte offset on."""
    with contextlib.suppress(OSError), log.open("rb") as file:
        file.seek(start)
        sys.stdout.flush()
        shutil.copyfileobj(file, sys.stdout.buffer)
        sys.stdout.buffer.flush()


def _write(fd: int, content: bytes) -> None:
    """Write all; output that nobody can take is no reason to end a training."""
    try:
        if fd == 2:
            sys.stderr.flush()
        while content:
            content = content[os.write(fd, content):]
    except OSError:
        return
