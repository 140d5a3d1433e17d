"""`distrib prepare`: raw images to a dataset of shards."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from distrib.verbs.answers import Json, answer
from distrib.verbs.images import (
    GroupColumn,
    ImageColumn,
    KeepColumn,
    LabelColumn,
    Labels,
    OnBad,
    ShardMb,
    ShardSamples,
    Source,
    SplitColumn,
    Workers,
)


def prepare(
    source: Source,
    out: Annotated[Path, typer.Option(help="The dataset's folder; must not exist yet.")],
    labels: Labels = None,
    image_column: ImageColumn = None,
    label_column: LabelColumn = None,
    group_column: GroupColumn = None,
    split: Annotated[str | None, typer.Option(help="Parts for train/val/test [0.8/0.1/0.1].")] = None,
    split_column: SplitColumn = None,
    keep_column: KeepColumn = None,
    resize: Annotated[int | None, typer.Option(help="Shrink the shorter side to this many pixels.")] = None,
    image_format: Annotated[str, typer.Option("--format", help="jpg, or png (lossless).")] = "jpg",
    quality: Annotated[int, typer.Option(help="JPEG quality of images that must be encoded anew.")] = 95,
    seed: Annotated[int, typer.Option(help="Seed of the split and of the order in the shards.")] = 0,
    on_bad: OnBad = "refuse",
    shard_samples: ShardSamples = 1000,
    shard_mb: ShardMb = 64.0,
    workers: Workers = None,
    as_json: Json = False,
) -> None:
    """Decode, check, split and pack images into a dataset of shards."""
    from distrib.data.prepare import run_prepare

    answer(run_prepare(
        source, out, labels=labels, image_column=image_column, label_column=label_column, group_column=group_column,
        split_column=split_column, split=split, resize=resize, image_format=image_format, quality=quality, seed=seed,
        on_bad=on_bad, shard_samples=shard_samples, shard_mb=shard_mb, workers=workers, kept_columns=keep_column or (),
    ), as_json)
