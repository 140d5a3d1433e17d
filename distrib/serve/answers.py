"""What the service knows: of an image, and of the model. Runs in the workers' threads; knows nothing of HTTP."""

from __future__ import annotations

import base64
from typing import Any

import cv2
import numpy as np

from distrib.bundle import LoadedBundle
from distrib.decision import decision_rule
from distrib.heatmap import occlusion_map, overlay
from distrib.predict import Predictor
from distrib.runtimes.table import Runtime
from distrib.scoring import Images, Logits
from distrib.serve.limits import Limits
from distrib.serve.workers import Workers

_NAME = "the image"  # in messages; the file's own name may be a patient's


class Answers:
    """Answers about images, with one model."""

    def __init__(self, loaded: LoadedBundle, predictor: Predictor, model: Runtime, workers: Workers) -> None:
        self._classes, self._predictor, self._model, self._workers = (
            loaded.bundle.classes, predictor, model, workers)

    def predicted(self, raw: bytes) -> dict[str, Any]:
        """As an entry of `distrib predict --json`, without the file's name. Raises DistribError."""
        return self._of_pixels(raw)[1]

    def _of_pixels(self, raw: bytes) -> tuple[Images, dict[str, Any]]:
        pixels = self._predictor.pixels(raw, _NAME)
        return pixels, {**self._predictor.answer(pixels, _NAME), "runtime": self._model.name}

    def explained(self, raw: bytes) -> dict[str, Any]:
        """The same, and where the label hangs on. To be called outside of the workers' threads, of which it takes
        those that are idle, one image at a time. Raises DistribError, QueueFullError."""
        pixels, answer = self._workers.submit(lambda: self._of_pixels(raw)).result()
        falls_CC = occlusion_map(self._forward, pixels, self._classes.index(answer["label"]))
        encoded, png = cv2.imencode(".png", overlay(pixels, falls_CC)[:, :, ::-1])
        assert encoded
        picture = base64.b64encode(png.tobytes()).decode()
        return {**answer, "heat_map": f"data:image/png;base64,{picture}", "largest_fall": float(falls_CC.max())}

    def _forward(self, images_NHWC: Images) -> Logits:
        def one(image_1HWC: Images) -> Logits:
            return self._model.here(image_1HWC)

        asked = [self._workers.submit(lambda part=part: one(part), background=True)  # type: ignore[misc]
                 for part in np.split(images_NHWC, len(images_NHWC))]
        return np.concatenate([future.result() for future in asked])


def describe(loaded: LoadedBundle, runtime: str, limits: Limits) -> dict[str, Any]:
    """What a client should know of the model."""
    bundle = loaded.bundle
    return {
        "classes": list(bundle.classes), "positive_class": bundle.positive_class,
        "threshold": bundle.threshold and bundle.threshold.model_dump(mode="json"),
        "rule": decision_rule(bundle.threshold), "runtime": runtime, "formats": list(bundle.files),
        "default_format": bundle.default_format, "bundle_sha256": loaded.sha256,
        "weights_sha256": bundle.weights.sha256, "dataset_sha256": bundle.dataset_sha256,
        "image_size": bundle.preprocessing.image_size, "metrics": bundle.metrics,
        "limits": {"image_bytes": limits.image_bytes, "pixels": limits.pixels},
    }
