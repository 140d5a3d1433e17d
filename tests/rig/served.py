"""A real `distrib serve`, in a process of its own, on a free port of this machine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Served:
    url: str
    process: subprocess.Popen[str]
    log: Path
    """What it writes on stderr."""

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def memory_mb(self, field: str = "VmHWM") -> float:
        """Of the process, now (VmRSS) or at most (VmHWM)."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) / 1e3

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


@contextmanager
def serving(bundle: Path, folder: Path, *options: str, argv: Sequence[str] | None = None) -> Iterator[Served]:
    """Until the block ends; the log lies in ``folder``. ``argv`` is another program than `distrib serve`."""
    log = folder / f"serve-{time.monotonic_ns()}.log"
    command = argv or [sys.executable, "-m", "distrib", "serve", str(bundle), "--port", "0", "--json", *options]
    with log.open("w") as stderr:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True,
                                   env={**os.environ, "PYTHONPATH": str(REPOSITORY)}, start_new_session=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, log.read_text()
        yield Served(json.loads(line)["url"], process, log)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
