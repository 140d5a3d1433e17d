"""Options of the verbs that take images in."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Source = Annotated[Path, typer.Argument(help="A folder of class folders, or of images with --labels.")]
Labels = Annotated[Path | None, typer.Option(help="A CSV that names images and labels.")]
ImageColumn = Annotated[str | None, typer.Option(help="Column of the image's name.")]
LabelColumn = Annotated[str | None, typer.Option(help="Column of the label.")]
GroupColumn = Annotated[str | None, typer.Option(help="Column of what no two splits may share: a patient.")]
SplitColumn = Annotated[str | None, typer.Option(help="Column that says train, val or test.")]
KeepColumn = Annotated[list[str] | None, typer.Option(help="A further column to keep, for `report --subgroup`.")]
OnBad = Annotated[str, typer.Option(help="Images that can not be used: refuse, or skip and record.")]
ShardSamples = Annotated[int, typer.Option(help="Most samples in a shard.")]
ShardMb = Annotated[float, typer.Option(help="Most megabytes in a shard.")]
Workers = Annotated[int | None, typer.Option(help="Processes that decode [all cores].")]
