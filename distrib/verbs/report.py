"""`distrib report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from distrib.entry import tell
from distrib.verbs.answers import Json, answer


def report(
    targets: Annotated[list[Path], typer.Argument(metavar="RUN_OR_BUNDLE...", help="Up to five, side by side.")],
    out: Annotated[Path, typer.Option(help="A new folder, or a file that ends in .html; an old report is replaced.")]
    = Path("report"),
    data: Annotated[Path | None, typer.Option(help="Another dataset than the experiment's.")] = None,
    split: Annotated[str, typer.Option(help="val, or, as a final act, test.")] = "val",
    subgroup: Annotated[list[str] | None, typer.Option(metavar="FIELD[=40,60]",
                                                       help="A field of the samples; numbers are cut there.")] = None,
    errors: Annotated[int, typer.Option(help="Worst errors shown as pictures, at most 24 in all.")] = 24,
    bootstrap: Annotated[int | None, typer.Option(help="Resamples for the intervals; 0 leaves them out.")] = None,
    as_json: Json = False,
) -> None:
    """Write one self-contained HTML page about runs or bundles, and a model card of each beside it."""
    from distrib.report.wishes import check_wishes
    from distrib.world import read_world

    wishes = check_wishes(targets, out, data, split, subgroup or (), errors, bootstrap, read_world().size)
    from distrib.report.run import run_report  # takes seconds to import

    result = run_report(wishes, tell)
    answer(result, as_json)
    tell(f"report in {result['page']} ({result['bytes'] / 1e6:.1f} MB), model card in {', '.join(result['cards'])}")
