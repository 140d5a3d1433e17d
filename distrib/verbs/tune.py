"""`distrib tune`: a study of an experiment's keys."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from distrib.entry import put, tell
from distrib.verbs.answers import Json, answer


def tune(
    study: Annotated[Path, typer.Argument(metavar="STUDY.yaml", help="The study file.")],
    override: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE",
                                                       help="Override a key of the base experiment.")] = None,
    folder: Annotated[Path | None, typer.Option(help="The study's folder [studies/NAME]; an existing one goes on."
                                                )] = None,
    at_once: Annotated[int | None, typer.Option(min=1, max=1024, help="Trials that this process trains at a time."
                                                )] = None,
    worker: Annotated[bool, typer.Option("--worker", help="Train what nobody else does, one trial at a time, and end; "
                                         "for many processes at once.")] = False,
    show: Annotated[bool, typer.Option("--show", help="Train nothing; show how the study stands.")] = False,
    as_json: Json = False,
) -> None:
    """Search for a better experiment: many trials, the unpromising ones stopped early."""
    from distrib.tune.storage import describe, require_optuna
    from distrib.tune.study import load_plan
    from distrib.world import read_world

    world = read_world()
    plan = load_plan(study, override or [], folder)
    require_optuna()
    describe(plan.study.storage)
    from distrib.tune.report import report_lines
    from distrib.tune.run import read_report, run_tune

    if show:
        report = read_report(plan, host=world.host)
    else:
        slots = at_once or (1 if worker else plan.study.at_once)
        report = run_tune(plan, tell, host=world.host, at_once=slots, worker=worker)
    number = abs(report.pop("signal"))
    answer(report, as_json)
    if not as_json:
        for line in report_lines(report):
            put(line)
    if number:
        raise typer.Exit(128 + number)
