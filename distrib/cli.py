"""The command line: `distrib VERB`. Verbs import what they need when they run, so that --help is quick."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from distrib.errors import DistribError

app = typer.Typer(
    name="distrib", help="Train image classifiers on clusters of CPUs.", no_args_is_help=True, add_completion=False,
    rich_markup_mode=None, pretty_exceptions_enable=False, context_settings={"help_option_names": ["-h", "--help"]},
)

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]


@app.callback()
def group() -> None:
    """Train image classifiers on clusters of CPUs."""


def tell(text: str) -> None:
    """One line for the user, on stderr."""
    print(text, file=sys.stderr, flush=True)


def answer(result: Any, as_json: bool) -> None:
    """The result on stdout, where it was asked for as JSON."""
    if as_json:
        print(json.dumps(result, allow_nan=False), flush=True)


@app.command()
def train(
    experiment: Annotated[Path | None, typer.Argument(help="The experiment; left out, --run DIR goes on.")] = None,
    override: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE",
                                                       help="Override a key, such as train.lr=0.1.")] = None,
    run: Annotated[Path | None, typer.Option(help="The run's folder [runs/NAME]; an existing run goes on.")] = None,
    as_json: Json = False,
) -> None:
    """Train a model: one rank of a world, or a world of one."""
    from distrib.train.run import run_train
    from distrib.world import read_world

    world = read_world()
    result = run_train(experiment, override or [], run, world, tell if world.is_first else lambda _: None)
    if world.is_first:
        answer(result, as_json)
        how = "finished" if result["finished"] else "stopped, to go on later,"
        tell(f"{how} after step {result['step']}; weights {result['weights_sha256'][:16]}; run {result['run']}")
    if result["signal"]:
        raise typer.Exit(128 + result["signal"])


def main() -> NoReturn:
    """Entry point. Exit codes: see `distrib.errors`."""
    try:
        code = app(standalone_mode=False) or 0
    except DistribError as error:
        tell(f"error: {error.one_line()}")
        code = error.exit_code
    except typer.Exit as done:
        code = done.exit_code
    except (typer.Abort, KeyboardInterrupt):
        code = 128 + signal.SIGINT
    sys.stdout.flush()
    sys.exit(code if isinstance(code, int) else 0)
