"""`distrib export`: a run to a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from distrib.entry import tell
from distrib.verbs.answers import Json, answer
from distrib.verbs.formats import EXACT, Calibration, Formats, Tolerance, names_in


def export(
    run: Annotated[Path, typer.Argument(help="A run's folder.")],
    out: Annotated[Path, typer.Option(help="The bundle's folder; must not exist yet.")],
    formats: Formats = EXACT,
    tolerance: Tolerance = 1e-3,
    samples: Annotated[int, typer.Option(help="Validation images that every format is checked with.")] = 64,
    max_drop: Annotated[float, typer.Option(help="Of int8 and bf16: most that evaluate.metric may fall.")] = 0.005,
    calibration: Calibration = 300,
    as_json: Json = False,
) -> None:
    """Write an inference bundle, if every format of it gives the model's own answers (int8, bf16: about so)."""
    from distrib.export.wishes import check_wishes

    names = names_in(formats)
    check_wishes(run, out, names, tolerance, samples, max_drop, calibration)
    from distrib.export.run import run_export  # takes seconds to import

    answer(run_export(run, out=out, formats=names, tolerance=tolerance, num_samples=samples, max_drop=max_drop,
                      calibration=calibration, tell=tell), as_json)
