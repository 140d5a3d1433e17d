"""`distrib update`: new images into a new version of a dataset."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from distrib.verbs.answers import Json, answer
from distrib.verbs.images import (
    GroupColumn,
    ImageColumn,
    LabelColumn,
    Labels,
    OnBad,
    ShardMb,
    ShardSamples,
    Source,
    SplitColumn,
    Workers,
)


def update(
    dataset: Annotated[Path, typer.Argument(help="A dataset's folder; it stays as it is.")],
    source: Source,
    out: Annotated[Path, typer.Option(help="The new version's folder; must not exist yet.")],
    labels: Labels = None,
    image_column: ImageColumn = None,
    label_column: LabelColumn = None,
    group_column: GroupColumn = None,
    split: Annotated[str | None, typer.Option(help="Parts for new groups, train/val/test [the dataset's].")] = None,
    split_column: SplitColumn = None,
    test: Annotated[str, typer.Option(help="The test split: keep it as it is, or let it grow.")] = "keep",
    new_classes: Annotated[bool, typer.Option("--new-classes", help="Append classes that are new.")] = False,
    on_bad: OnBad = "refuse",
    shard_samples: ShardSamples = 1000,
    shard_mb: ShardMb = 64.0,
    workers: Workers = None,
    as_json: Json = False,
) -> None:
    """Add new images to a dataset, as new shards of a new version; old shards and splits stay."""
    from distrib.data.update import run_update

    answer(run_update(
        dataset, source, out, labels=labels, image_column=image_column, label_column=label_column,
        group_column=group_column, split=split, split_column=split_column, test=test, new_classes=new_classes,
        on_bad=on_bad, shard_samples=shard_samples, shard_mb=shard_mb, workers=workers,
    ), as_json)
