"""How a command of ours ends: every error as one line on stderr, and its exit code."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import typer

from distrib.errors import DistribError

# typer carries a click of its own in some versions; the class of wrong arguments is known by its child.
_UsageError: type[Exception] = typer.BadParameter.__mro__[1]


def tell(text: str) -> None:
    """One line for the user, on stderr."""
    print(text, file=sys.stderr, flush=True)


def run_app(app: typer.Typer, name: str, arguments: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code; see `distrib.errors` for the codes."""
    try:
        code = app(sys.argv[1:] if arguments is None else list(arguments), prog_name=name, standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except DistribError as error:
        report(error)
        return error.exit_code
    except typer.Exit as error:
        return error.exit_code
    except BrokenPipeError:  # whoever read our output has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 128 + signal.SIGPIPE
    except (typer.Abort, KeyboardInterrupt):
        return 128 + signal.SIGINT
    except _UsageError as error:
        tell(_usage(error, name))
        return DistribError.exit_code


def report(error: DistribError) -> None:
    """Show an error, and leave it where a launcher that watches several ranks looks for it (torchrun's format)."""
    tell(f"error: {error.one_line()}")
    if path := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        record = {"message": error.one_line(), "timestamp": str(int(time.time()))}
        with contextlib.suppress(OSError):  # the message has been shown; this copy is a courtesy
            Path(path).write_text(json.dumps(record))


def _usage(error: Exception, name: str) -> str:
    message = " ".join(str(getattr(error, "format_message", lambda: error)()).split())
    if type(error).__name__ == "NoArgsIsHelpError":
        return str(error)
    context = getattr(error, "ctx", None)
    path = context.command_path if context else name
    return "error: " + DistribError(message, remedy=f"see `{path} --help`").one_line()
