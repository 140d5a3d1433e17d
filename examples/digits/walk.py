"""What the examples that walk a whole way share: public commands, shown, timed, and stopped where one fails."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console

_Result = TypeVar("_Result")


class CommandError(Exception):
    """A command ended with another exit code than 0."""

    def __init__(self, command: str, code: int) -> None:
        self.code = code
        super().__init__(f"`{command}` ended with exit code {code}; its message is above")


@dataclass
class Walk:
    """Commands, one after another, shown and timed."""

    console: Console
    seconds: dict[str, float] = field(default_factory=dict)

    def run(self, name: str, *argv: str, shown: int = 40) -> Any:
        """Run a command, let its stderr through, and return the JSON on its stdout. Raises CommandError."""
        text, done = self._done(name, argv, shown, None)
        if done.returncode:
            raise CommandError(text, done.returncode)
        return json.loads(done.stdout)

    def refused(self, name: str, code: int, *argv: str) -> str:
        """Run a command that must end with this exit code; returns what it said on stderr. Raises CommandError."""
        text, done = self._done(name, argv, 40, subprocess.PIPE)
        said = done.stderr.strip()
        self.console.print(said, markup=False, highlight=False, soft_wrap=True)
        if done.returncode != code:
            raise CommandError(text, done.returncode)
        return str(said)

    def _done(self, name: str, argv: Sequence[str], shown: int,
              stderr: int | None) -> tuple[str, subprocess.CompletedProcess[str]]:
        text = shlex.join(argv[:shown]) + (f" ... ({len(argv) - shown} more)" if len(argv) > shown else "")
        self.console.print(f"\n$ {text}", style="bold cyan", markup=False, highlight=False, soft_wrap=True)
        # The commands stand beside the interpreter, which need not be on the PATH.
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
        program = shutil.which(argv[0], path=path)
        if program is None:
            raise FileNotFoundError(f"the command {argv[0]!r} is not installed; run: pip install .")
        done = self.timed(name, lambda: subprocess.run([program, *argv[1:]], stdout=subprocess.PIPE, stderr=stderr,
                                                       text=True, check=False, env={**os.environ, "PATH": path}))
        return text, done

    def timed(self, name: str, work: Callable[[], _Result]) -> _Result:
        """Do the work and note how long it took."""
        began = time.perf_counter()
        result = work()
        self.seconds[name] = time.perf_counter() - began
        return result


def new_folder(out: Path) -> Path:
    """The next numbered folder of ``out``, made."""
    out.mkdir(parents=True, exist_ok=True)
    number = max((int(entry.name) for entry in out.iterdir() if entry.name.isdecimal()), default=0) + 1
    folder = out / f"{number:03d}"
    folder.mkdir()
    return folder
