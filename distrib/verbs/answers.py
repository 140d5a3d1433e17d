"""What the verbs of the command line share."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from distrib.entry import put

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]


def answer(result: Any, as_json: bool) -> None:
    """The result on stdout, where it was asked for as JSON."""
    if as_json:
        put(json.dumps(result, allow_nan=False))
