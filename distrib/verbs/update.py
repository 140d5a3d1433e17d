"""`distrib update`: new images into a new version of a dataset."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from distrib.verbs.answers import Json, answer


def update(
    dataset: Annotated[Path, typer.Argument(help="A dataset's folder; it stays as it is.")],
    source: Annotated[Path, typer.Argument(help="A folder of class folders, or of images with --labels.")],
    out: Annotated[Path, typer.Option(help="The new version's folder; must not exist yet.")],
    labels: Annotated[Path | None, typer.Option(help="A CSV that names images and labels.")] = None,
    image_column: Annotated[str | None, typer.Option(help="Column of the image's name.")] = None,
    label_column: Annotated[str | None, typer.Option(help="Column of the label.")] = None,
    group_column: Annotated[str | None, typer.Option(help="Column of what no two splits may share: a patient.")] = None,
    split: Annotated[str | None, typer.Option(help="Parts for new groups, train/val/test [the dataset's].")] = None,
    split_column: Annotated[str | None, typer.Option(help="Column that says train, val or test.")] = None,
    test: Annotated[str, typer.Option(help="The test split: keep it as it is, or let it grow.")] = "keep",
    new_classes: Annotated[bool, typer.Option("--new-classes", help="Append classes that are new.")] = False,
    on_bad: Annotated[str, typer.Option(help="Images that can not be used: refuse, or skip and record.")] = "refuse",
    shard_samples: Annotated[int, typer.Option(help="Most samples in a shard.")] = 1000,
    shard_mb: Annotated[float, typer.Option(help="Most megabytes in a shard.")] = 64.0,
    workers: Annotated[int | None, typer.Option(help="Processes that decode [all cores].")] = None,
    as_json: Json = False,
) -> None:
    """Add new images to a dataset, as new shards of a new version; old shards and splits stay."""
    from distrib.data.update import run_update

    answer(run_update(
        dataset, source, out, labels=labels, image_column=image_column, label_column=label_column,
        group_column=group_column, split=split, split_column=split_column, test=test, new_classes=new_classes,
        on_bad=on_bad, shard_samples=shard_samples, shard_mb=shard_mb, workers=workers,
    ), as_json)
