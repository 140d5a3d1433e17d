"""`distrib ensemble`: several runs as one bundle, and k folds of an experiment as one command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from distrib.entry import tell
from distrib.verbs.answers import Json, answer
from distrib.verbs.formats import EXACT, Calibration, Formats, Tolerance, names_in


def ensemble(
    sources: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Runs; with --folds one EXPERIMENT.yaml.")],
    out: Annotated[Path, typer.Option(help="The bundle's folder; must not exist yet.")],
    folds: Annotated[int | None, typer.Option(help="First train this many members, each validated on another fold.")]
    = None,
    run: Annotated[Path | None, typer.Option(help="Of --folds: the folder of their runs [runs/NAME-folds].")] = None,
    override: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE",
                                                       help="Of --folds: override a key.")] = None,
    combine: Annotated[str, typer.Option(help="mean, weights (fitted), or rank (mean, two classes).")] = "mean",
    select: Annotated[str, typer.Option(help="Which members: all, or greedy (those that help).")] = "all",
    tta: Annotated[str, typer.Option(help="Views averaged inside the model: none, hflip or flips.")] = "none",
    calibrate: Annotated[str, typer.Option(help="temperature, or none.")] = "temperature",
    metric: Annotated[str | None, typer.Option(help="What decides [evaluate.metric of the members].")] = None,
    split: Annotated[str, typer.Option(help="What decides on: val, and nothing else.")] = "val",
    formats: Formats = EXACT,
    tolerance: Tolerance = 1e-3,
    samples: Annotated[int, typer.Option(help="Images that every format is checked with.")] = 64,
    max_drop: Annotated[float, typer.Option(help="Of int8 and bf16: most that the metric may fall.")] = 0.005,
    calibration: Calibration = 300,
    as_json: Json = False,
) -> None:
    """Combine runs into one bundle, chosen on validation samples alone; with --folds, train them first."""
    from distrib.ensemble.wishes import check_classes, check_members, check_out_of_fold, make_wishes
    from distrib.world import read_world

    names = names_in(formats)
    wishes = make_wishes(out, names, split=split, combine=combine, select=select, tta=tta, calibrate=calibrate,
                         metric=metric, tolerance=tolerance, num_samples=samples, max_drop=max_drop,
                         calibration=calibration)
    check_members(sources, folds, run, override or [], read_world())
    if folds is not None:
        from distrib.ensemble.folds import settle_folds, train_folds

        settled = settle_folds(sources[0], folds, override or [], run)
        check_classes(wishes, len(settled[0].classes))
        if settled[0].experiment.data.fold_over != "train":
            check_out_of_fold(wishes)
        if code := train_folds(settled, tell):
            raise typer.Exit(code)
        sources = [one.run.root for one in settled]
    from distrib.ensemble.run import run_ensemble  # takes seconds to import

    answer(run_ensemble(sources, wishes, tell), as_json)
