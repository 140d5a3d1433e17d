"""`distrib inspect`: what is in a dataset, and whether every byte of it is whole."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from distrib.verbs.answers import Json, answer


def inspect(
    dataset: Annotated[Path, typer.Argument(help="A dataset's folder.")],
    verify: Annotated[bool, typer.Option(help="Read every shard and check all digests.")] = True,
    as_json: Json = False,
) -> None:
    """Show a dataset's classes by split, and verify every byte of it."""
    from distrib.data.inspect import run_inspect

    answer(run_inspect(dataset, verify=verify), as_json)
