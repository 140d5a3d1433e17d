"""Labels for raw image files, from a bundle. Imports nothing of training, and torch only to run .pt2 files.

A file takes the way that the dataset's files took: `ingest` with the options of its preparation, then the
evaluation transform, then the model. So an image has the same label and, to the last bit, the same
probabilities as `evaluate` gives it with the same bundle and runtime.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from distrib.bundle import Bundle, LoadedBundle, load_bundle
from distrib.data.image_files import images_below, read_image_file
from distrib.data.ingest import IngestOptions, ingest
from distrib.data.raw_image import MAX_PIXELS
from distrib.data.transform import EvalTransform
from distrib.decision import decide, softmax
from distrib.errors import BundleError, ConfigError, DataError, DistribError, DivergedError, printable
from distrib.runtimes.table import Runtime
from distrib.scoring import Images
from distrib.views import VIEWS


def run_predict(bundle: Path, images: Sequence[Path], *, tta: str = "none", runtime: str | None = None,
                tell: Callable[[str], None] = lambda _: None) -> list[dict[str, Any]]:
    """One entry an image, in the order given; a folder stands for all images below it, sorted.

    {"image", "label", "probabilities": {class: p}, "runtime", "tta"}, and where the bundle has a decision
    threshold "threshold" (the label is the positive class iff its probability is at least that).
    ``tta``, test-time augmentation: none, hflip (2 views) or flips (4); probabilities are means over the views.

    An image that can not be used has label and probabilities None and an "error"; the others are still
    predicted. Call `failure` on the result for what to raise. Raises BundleError, ConfigError, DataError,
    MissingPartError before anything is predicted.
    """
    if tta not in VIEWS:
        raise ConfigError(f"--tta {tta!r} is unknown", "nothing was predicted", f"choose one of {', '.join(VIEWS)}")
    loaded = load_bundle(bundle)
    options = ingest_options(loaded)
    paths = _files(images, tell)
    with Runtime(loaded, runtime) as model:
        predictor = Predictor(loaded.bundle, options, model, tta)
        common = {"runtime": model.name, "tta": tta}
        # One task an image, decoding included: every core is busy, and at most so many images are in memory.
        with ThreadPoolExecutor(model.threads, thread_name_prefix="predict") as pool:
            return [{**entry, **common} for entry in pool.map(partial(_of_file, predictor=predictor), paths)]


def failure(predictions: Sequence[dict[str, Any]]) -> DistribError | None:
    """The error that says which images could not be used; None if all were."""
    failed = [entry["error"] for entry in predictions if "error" in entry]
    if not failed:
        return None
    more = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
    return DataError(f"{failed[0].rstrip('.')}{more}",
                     f"{len(predictions) - len(failed)} of {len(predictions)} images were predicted")


def _files(images: Sequence[Path], tell: Callable[[str], None]) -> list[Path]:
    paths: list[Path] = []
    for image in images:
        if not image.is_dir():
            paths.append(image)
            continue
        found, notes = images_below(image)
        if not found:
            raise DataError(f"there is no image below {image}", "nothing was predicted",
                            "name another folder, or files")
        for note in notes:
            tell(printable(f"{image}: {note}"))
        paths += [image / name for name in found]
    if not paths:
        raise ConfigError("no image is given", "nothing was predicted", "name image files, or folders of them")
    return paths


def ingest_options(loaded: LoadedBundle) -> IngestOptions:
    """How the bundle's images are prepared. Raises BundleError."""
    try:
        return IngestOptions.model_validate(loaded.bundle.preprocessing.ingest)
    except ValueError as error:
        raise BundleError(f"the bundle {loaded.path} asks for a preparation of images that is unknown here",
                          "its predictions would be wrong", "use the version of distrib that wrote it") from error


class Predictor:
    """From the bytes of an image file to its answer; safe to call from as many threads as the runtime has."""

    def __init__(self, bundle: Bundle, options: IngestOptions, model: Runtime, tta: str = "none",
                 max_pixels: int = MAX_PIXELS) -> None:
        self._bundle, self._options, self._model, self._views = bundle, options, model, VIEWS[tta]
        self._max_pixels = max_pixels
        self._transform = EvalTransform(bundle.preprocessing.image_size, bundle.preprocessing.eval_crop)

    def pixels(self, raw: bytes, name: str) -> Images:
        """uint8 [S, S, 3], what the model is to see. Raises ImageError, whose fact begins with ``name``."""
        canonical = ingest(raw, name, self._options, self._max_pixels)
        return self._transform(canonical.content, canonical.kind)

    def answer(self, pixels: Images, name: str) -> dict[str, Any]:
        """{"label", "threshold" where there is one, "probabilities": {class: p}}. Raises DivergedError."""
        logits_NK = self._model.here(np.concatenate([np.flip(pixels[None], axes) for axes in self._views]))
        if not np.isfinite(logits_NK).all():
            raise DivergedError(f"the model's output for {name} is not a finite number")
        probabilities_1K = softmax(logits_NK).mean(axis=0, keepdims=True)
        bundle = self._bundle
        label = bundle.classes[int(decide(probabilities_1K, bundle.classes, bundle.threshold)[0])]
        threshold = {"threshold": bundle.threshold.value} if bundle.threshold else {}
        return {"label": label, **threshold,
                "probabilities": dict(zip(bundle.classes, map(float, probabilities_1K[0]), strict=True))}


def _of_file(path: Path, predictor: Predictor) -> dict[str, Any]:
    """The entry of one file."""
    name = str(path).encode(errors="surrogateescape").decode(errors="replace")
    try:
        try:
            raw = read_image_file(path)
        except DataError as error:
            raise DataError(f"{path} {error.fact}", "it was not used", "check the path") from error
        return {"image": name, **predictor.answer(predictor.pixels(raw, str(path)), name)}
    except DistribError as error:
        return {"image": name, "label": None, "probabilities": None, "error": error.one_line()}
