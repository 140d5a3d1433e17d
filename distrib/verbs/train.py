"""`distrib train`: one rank of a world, or a world of one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from distrib.entry import tell
from distrib.verbs.answers import Json, answer


def train(
    experiment: Annotated[Path | None, typer.Argument(help="The experiment; left out, --run DIR goes on.")] = None,
    override: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE",
                                                       help="Override a key, such as train.lr=0.1.")] = None,
    run: Annotated[Path | None, typer.Option(help="The run's folder [runs/NAME]; an existing run goes on.")] = None,
    source: Annotated[Path | None, typer.Option("--from", metavar="RUN_OR_BUNDLE",
                                                help="Begin with the weights of this run or bundle.")] = None,
    join: Annotated[bool, typer.Option("--join", help="Become a further rank of the elastic run --run.")] = False,
    as_json: Json = False,
) -> None:
    """Train a model: one rank of a world, or a world of one."""
    from distrib.rundir import is_finished
    from distrib.train.settle import settle
    from distrib.world import read_world

    world = read_world()
    settled = settle(experiment, override or [], run, world, source)
    before = is_finished(settled.run)
    from distrib.train.run import run_train  # takes seconds to import

    result = run_train(settled, world, tell, join=join or world.join)
    if result.pop("leads"):
        answer(result, as_json)
        tell(last_words(result, before))
    if result["signal"]:
        raise typer.Exit(128 + result["signal"])


def last_words(result: dict[str, Any], before: bool) -> str:
    """How a training ended, for people. ``before``: whether the run had come to its end already."""
    run = result["run"]
    if before and result["finished"]:
        return (f"{run} was finished already, after step {result['step']}. Next: `distrib evaluate "
                f"{run}`, or train into another --run folder, with --from {run} to start with its weights")
    how = "finished" if result["finished"] else "stopped, to go on later,"
    return f"{how} after step {result['step']}; weights {result['weights_sha256'][:16]}; run {run}"
