"""How a command of ours ends: every error as one line on stderr, and its exit code."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer

from distrib import __version__
from distrib.errors import ConfigError, DistribError, StorageError

# typer carries a click of its own in some versions; the class of wrong arguments is known by its child.
_UsageError: type[Exception] = typer.BadParameter.__mro__[1]


def tell(text: str) -> None:
    """One line for the user, on stderr."""
    print(text, file=sys.stderr, flush=True)


class ReaderGoneError(Exception):
    """Whoever read our stdout has enough. No OSError: typer would end the program on that, with exit code 1."""


def put(text: str, end: str = "\n") -> None:
    """One line of the answer, on stdout. Raises StorageError, and ReaderGoneError where nobody reads it."""
    try:
        print(text, end=end, flush=True)
    except BrokenPipeError as error:
        _silence_stdout()
        raise ReaderGoneError from error
    except OSError as error:
        _silence_stdout()
        raise StorageError(f"the answer could not be written to stdout: {error.strerror}", "it is not complete",
                           "send it to a file on another disk") from error


def _silence_stdout() -> None:
    """What is still buffered goes nowhere, or Python would try to write it once more at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def version_option(name: str) -> Any:
    """The option --version of a command line."""

    def show(wanted: bool) -> None:
        if wanted:
            put(f"{name} {__version__}")
            raise typer.Exit

    return typer.Option("--version", is_eager=True, callback=show, help="Show the version and exit.")


def run_app(app: typer.Typer, name: str, arguments: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code; see `distrib.errors` for the codes."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files may not fit the terminal's encoding
    try:
        # As a path it would be the current folder; what follows -- is another command's.
        if "" in words[:words.index("--") if "--" in words else None]:
            raise ConfigError("an argument is empty", "nothing was started", "check the variable that it came from")
        code = app(words, prog_name=name, standalone_mode=False)
        put("", end="")
        return code if isinstance(code, int) else 0
    except DistribError as error:
        report(error)
        return error.exit_code
    except typer.Exit as error:
        return error.exit_code
    except ReaderGoneError:
        return 128 + signal.SIGPIPE
    except (typer.Abort, KeyboardInterrupt):
        return 128 + signal.SIGINT
    except _UsageError as error:
        tell(_usage(error, name))
        return DistribError.exit_code


def report(error: DistribError) -> None:
    """Show an error, and leave it where a launcher that watches several ranks looks for it.

    The format is torchrun's, with the error's class besides.
    """
    tell(f"error: {error.one_line()}")
    if path := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        kind = next(base.__name__ for base in type(error).__mro__ if base.__module__ == DistribError.__module__)
        record = {"message": error.one_line(), "timestamp": str(int(time.time())), "kind": kind}
        with contextlib.suppress(OSError):  # the message has been shown; this copy is a courtesy
            Path(path).write_text(json.dumps(record))


def _usage(error: Exception, name: str) -> str:
    message = " ".join(str(getattr(error, "format_message", lambda: error)()).split())
    if type(error).__name__ == "NoArgsIsHelpError":
        return str(error)
    context = getattr(error, "ctx", None)
    path = context.command_path if context else name
    return "error: " + DistribError(message[:1].lower() + message[1:], remedy=f"see `{path} --help`").one_line()
