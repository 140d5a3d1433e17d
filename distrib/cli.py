"""The command line: `distrib VERB`. Verbs import what they need when they run, so that --help is quick."""

from __future__ import annotations

import signal
import sys
from types import FrameType
from typing import Annotated, NoReturn

import typer

from distrib.entry import run_app, version_option
from distrib.verbs.adopt import adopt
from distrib.verbs.backends import backends
from distrib.verbs.bench import bench
from distrib.verbs.ensemble import ensemble
from distrib.verbs.evaluate import evaluate
from distrib.verbs.export import export
from distrib.verbs.inspect import inspect
from distrib.verbs.predict import predict
from distrib.verbs.prepare import prepare
from distrib.verbs.promote import promote
from distrib.verbs.report import report
from distrib.verbs.serve import serve
from distrib.verbs.train import train
from distrib.verbs.tune import tune
from distrib.verbs.update import update
from distrib.verbs.verify import verify

VERBS = (prepare, inspect, adopt, update, train, tune, ensemble, evaluate, report,
         verify, export, bench, predict, serve, promote, backends)
"""In the order of the way from images to a model in use."""

EPILOG = """Exit codes: 0 done; 2 bad input, which one line on stderr names; 3 the loss diverged; 1 a difference that
`verify` found, a regression that `promote` refused, or a fault of this program; 130 and 143 stopped by Ctrl-C or
SIGTERM, after saving.

Documents: README.md and docs/ of the source; `distrib VERB --help` has the options of a verb, docs/experiment.md the
keys of an experiment."""

app = typer.Typer(
    name="distrib", help="Train image classifiers on clusters of CPUs.", epilog=EPILOG, no_args_is_help=True,
    add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def group(version: Annotated[bool, version_option("distrib")] = False) -> None:
    """Train image classifiers on clusters of CPUs."""


for verb in VERBS:
    app.command()(verb)


def _terminate(number: int, _: FrameType | None) -> NoReturn:
    """End by way of every `finally`, so that unfinished folders are removed; `train` has a way of its own."""
    sys.exit(128 + number)


def main() -> int:
    """Entry point."""
    signal.signal(signal.SIGTERM, _terminate)
    return run_app(app, "distrib")
