"""`distrib predict`: labels for images, by a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from distrib.entry import put, tell
from distrib.errors import printable
from distrib.verbs.answers import Json, answer


def predict(
    bundle: Annotated[Path, typer.Argument(help="A bundle's folder.")],
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Image files, or folders of them.")],
    tta: Annotated[str, typer.Option(help="Test-time augmentation: none, hflip or flips.")] = "none",
    runtime: Annotated[str | None, typer.Option(help="One of the bundle's formats.")] = None,
    as_json: Json = False,
) -> None:
    """Predict the class of images, with a bundle and nothing else of the training."""
    from distrib.predict import failure, run_predict

    predictions = run_predict(bundle, images, tta=tta, runtime=runtime, tell=tell)
    answer(predictions, as_json)
    if not as_json:
        for entry in predictions:
            if entry["label"] is not None:
                probability = entry["probabilities"][entry["label"]]
                by = ""
                if probability < max(entry["probabilities"].values()):
                    by = f"; decided by the threshold {entry['threshold']:.4f}"
                put(printable(f"{entry['image']}: {entry['label']} ({probability:.4f}{by})"))
    if (error := failure(predictions)) is not None:
        raise error
