"""`distrib evaluate`: a run or a bundle judged on held-out images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from distrib.entry import tell
from distrib.verbs.answers import Json, answer


def evaluate(
    target: Annotated[Path, typer.Argument(metavar="RUN_OR_BUNDLE", help="A run's folder, or a bundle.")],
    data: Annotated[Path | None, typer.Option(help="Another dataset than the experiment's.")] = None,
    split: Annotated[str, typer.Option(help="train, val or test.")] = "test",
    runtime: Annotated[str | None, typer.Option(help="Of a bundle: one of its formats.")] = None,
    bootstrap: Annotated[int | None, typer.Option(help="Resamples for the intervals; 0 leaves them out.")] = None,
    predictions: Annotated[Path | None, typer.Option(help="Write a CSV of every sample's probabilities.")] = None,
    as_json: Json = False,
) -> None:
    """Judge a run's best checkpoint, or a bundle, on held-out images; over all ranks where there are several."""
    from distrib.evaluate import run_evaluate, show_report
    from distrib.world import read_world

    world = read_world()
    if world.size == 1:
        report = run_evaluate(target, data=data, split=split, runtime=runtime, bootstrap=bootstrap,
                              predictions=predictions, tell=tell)
    else:
        from distrib.comm.group import Group

        with Group(world) as ranks:
            report = run_evaluate(target, data=data, split=split, runtime=runtime, world=world,
                                  sum_over_ranks=ranks.sum_over_ranks, bootstrap=bootstrap, predictions=predictions,
                                  tell=tell if world.is_first else lambda _: None)
    if world.is_first:
        answer(report, as_json)
        if not as_json:
            show_report(report)
