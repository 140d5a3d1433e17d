"""`distrib verify`: whether two runs are the same model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from distrib.entry import put, tell
from distrib.verbs.answers import Json, answer


def verify(
    run: Annotated[Path, typer.Argument(metavar="RUN_A", help="A run's folder.")],
    other: Annotated[Path | None, typer.Argument(metavar="RUN_B", help="Another run's folder.")] = None,
    replay: Annotated[bool, typer.Option("--replay", help="Train the run anew, and compare with that.")] = False,
    steps: Annotated[int | None, typer.Option(help="Of a replay: steps to train [all].")] = None,
    keep: Annotated[Path | None, typer.Option(help="Of a replay: its folder, which is kept.")] = None,
    data: Annotated[Path | None, typer.Option(help="Of a replay: where the same dataset lies now.")] = None,
    as_json: Json = False,
) -> None:
    """Say whether two runs are the same model, bit for bit (exit code 0), or since when and why not (1)."""
    from distrib.verify.wishes import check_wishes
    from distrib.world import read_world

    check_wishes(run, other, replay, steps, keep, data, read_world())
    from distrib.verify.run import run_replay, run_verify  # takes seconds to import
    from distrib.verify.words import show_verdict

    if other is not None:
        verdict = run_verify(run, other, tell)
    else:
        verdict = run_replay(run, steps=steps, keep=keep, data=data, tell=tell)
    answer(verdict, as_json)
    if not as_json:
        show_verdict(verdict, put)
    if not verdict["same"]:
        raise typer.Exit(1)
