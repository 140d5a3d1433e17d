"""The worst errors, as small pictures with a map of what the wrong answer hangs on."""

from __future__ import annotations

import base64
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from distrib.data.shards import ShardReader
from distrib.decision import decide, softmax
from distrib.errors import counted
from distrib.evaluate import Scored
from distrib.heatmap import occlusion_map, overlay
from distrib.metrics import Floats, Labels
from distrib.scoring import Images

SIDE = 160
"""Pixels of a picture's side on the page."""
_JPEG_QUALITY = 80


@dataclass(frozen=True)
class Mistake:
    key: str
    group: str
    truth: str
    label: str
    truth_probability: float
    label_probability: float
    image: str
    """What the model took in, as a data URI."""
    map: str
    """The same with where the label hung on."""
    largest_fall: float
    """Of the label's probability, when one of the 64 cells was covered."""


def worst(probabilities_NK: Floats, labels_N: Labels, predicted_N: Labels, most: int) -> NDArray[np.int64]:
    """The wrongly labelled samples with the least probability of what they are, the worst first."""
    wrong = np.flatnonzero(predicted_N != labels_N)
    order = np.argsort(probabilities_NK[wrong, labels_N[wrong]], kind="stable")
    return wrong[order][:most].astype(np.int64)


def find_mistakes(one: Scored, most: int, tell: Callable[[str], None]) -> list[Mistake]:
    """Within the block of `distrib.evaluate.scored`: the model is asked again. Raises ShardError."""
    subject, samples = one.subject, one.samples
    probabilities_NK = softmax(one.logits_NK)
    predicted_N = decide(probabilities_NK, subject.classes, subject.threshold)
    chosen = worst(probabilities_NK, samples.labels, predicted_N, most)
    if not len(chosen):
        return []
    tell(f"looking where {one.target} looked: {counted(len(chosen), 'error')}")
    with ShardReader(one.folder, samples) as reader, ThreadPoolExecutor(subject.workers) as pool:

        def mistake(sample: int) -> Mistake:
            try:
                image_HWC = subject.transform(reader.read(sample), reader.kind(sample))
            except ValueError as error:
                raise reader.error(sample, f"can not be decoded: {error}") from error
            label, truth = int(predicted_N[sample]), int(samples.labels[sample])
            falls_CC = occlusion_map(subject.forward, image_HWC, label)
            shown_HWC = _resized(image_HWC)
            return Mistake(samples.keys[sample], samples.groups[sample], subject.classes[truth],
                           subject.classes[label], float(probabilities_NK[sample, truth]),
                           float(probabilities_NK[sample, label]), _data_uri(shown_HWC),
                           _data_uri(overlay(shown_HWC, falls_CC)), float(falls_CC.max()))

        return list(pool.map(mistake, map(int, chosen)))


def _resized(image_HWC: Images) -> Images:
    how = cv2.INTER_AREA if image_HWC.shape[0] >= SIDE else cv2.INTER_NEAREST
    resized: Images = cv2.resize(image_HWC, (SIDE, SIDE), interpolation=how)  # type: ignore[assignment]
    return resized


def _data_uri(image_HWC: Images) -> str:
    done, encoded = cv2.imencode(".jpg", cv2.cvtColor(image_HWC, cv2.COLOR_RGB2BGR),
                                 [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    assert done
    return "data:image/jpeg;base64," + base64.b64encode(encoded.tobytes()).decode()
