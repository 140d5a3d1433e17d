"""Options of the verbs that write bundles."""

from __future__ import annotations

from typing import Annotated

import typer

Formats = Annotated[str, typer.Option("--format", help="Formats, separated by commas.")]
Tolerance = Annotated[float, typer.Option(help="Largest difference of a probability between formats.")]
Calibration = Annotated[int, typer.Option(help="Of int8: training images that ranges come from.")]

EXACT = "torch,onnx,openvino"


def names_in(formats: str) -> list[str]:
    """The names in what --format says."""
    return [name.strip() for name in formats.split(",") if name.strip()]
