"""How a command of ours ends: every error as one line on stderr, and its exit code."""

from __future__ import annotations

import signal
import sys
from typing import NoReturn

import typer

from distrib.errors import DistribError

# typer carries a click of its own in some versions; the class of wrong arguments is known by its child.
_UsageError: type[Exception] = typer.BadParameter.__mro__[1]


def tell(text: str) -> None:
    """One line for the user, on stderr."""
    print(text, file=sys.stderr, flush=True)


def run_app(app: typer.Typer) -> NoReturn:
    """Run a command line and exit. Exit codes: see `distrib.errors`."""
    try:
        done = app(standalone_mode=False)
        code = done if isinstance(done, int) else 0
        sys.stdout.flush()
    except DistribError as error:
        tell(f"error: {error.one_line()}")
        code = error.exit_code
    except typer.Exit as error:
        code = error.exit_code
    except BrokenPipeError:  # whoever read our output has enough
        sys.stderr.close()
        code = 128 + signal.SIGPIPE
    except (typer.Abort, KeyboardInterrupt):
        code = 128 + signal.SIGINT
    except _UsageError as error:
        tell(_usage(error))
        code = DistribError.exit_code
    sys.exit(code)


def _usage(error: Exception) -> str:
    message = str(getattr(error, "format_message", lambda: error)()).strip().rstrip(".")
    context = getattr(error, "ctx", None)
    if type(error).__name__ == "NoArgsIsHelpError" or context is None:
        return message
    text = DistribError(message[:1].lower() + message[1:], remedy=f"see `{context.command_path} --help`").one_line()
    return f"error: {text}"
