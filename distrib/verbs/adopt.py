"""`distrib adopt`: shards that others made."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from distrib.verbs.answers import Json, answer
from distrib.verbs.images import Workers


def adopt(
    folder: Annotated[Path, typer.Argument(help="A folder of WebDataset shards that others made.")],
    split: Annotated[list[str] | None, typer.Option(metavar="SPLIT=GLOB", help="Shards of a split [by names].")] = None,
    label_field: Annotated[str | None, typer.Option(help="Field of the samples' JSON that holds the label.")] = None,
    group_field: Annotated[str | None, typer.Option(help="Field of the samples' JSON that holds the group.")] = None,
    class_names: Annotated[Path | None, typer.Option(help="A text file of class names, one a line.")] = None,
    on_bad: Annotated[str, typer.Option(help="Samples that can not be used: refuse, or skip and record.")] = "refuse",
    workers: Workers = None,
    as_json: Json = False,
) -> None:
    """Index shards that others made, in place: check every image, and write dataset.json beside them."""
    from distrib.data.adopt import run_adopt

    answer(run_adopt(folder, splits=split or (), label_field=label_field, group_field=group_field,
                     class_names=class_names, on_bad=on_bad, workers=workers), as_json)
