"""The traditional road: hand-made features of a digit, and a random forest on them.

The features are those that won digit recognition before networks did: the slant is taken out, then
histograms of gradient directions over overlapping cells (Dalal and Triggs, "Histograms of Oriented
Gradients", 2005) at two scales, ink by zone, projections, outline profiles and holes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import RandomForestClassifier

_SIDE = 28
_DIRECTIONS = 8

Features = NDArray[np.float32]


def read_image(path: Path) -> NDArray[np.uint8]:
    """Grey pixels, uint8 [28, 28]."""
    image = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    if image is None or image.shape != (_SIDE, _SIDE):
        raise ValueError(f"{path} is no picture of 28x28 pixels")
    return image.astype(np.uint8)


def upright(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The digit sheared so that its strokes stand upright, centred on its mass; float32 [28, 28], 0 to 1."""
    moments = cv2.moments(image)
    if moments["m00"] == 0 or abs(moments["mu02"]) < 1e-2:
        return np.asarray(image / 255, np.float32)
    slant = moments["mu11"] / moments["mu02"]
    x, y = moments["m10"] / moments["m00"], moments["m01"] / moments["m00"]
    middle = (_SIDE - 1) / 2
    matrix = np.array([[1.0, slant, x - middle - slant * middle], [0.0, 1.0, y - middle]])
    moved = cv2.warpAffine(image, matrix, (_SIDE, _SIDE), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
    return np.asarray(moved / 255, np.float32)


def features(image: NDArray[np.uint8]) -> Features:
    """All features of one digit, float32 [F]."""
    ink = upright(image)
    return np.concatenate([_gradients(ink, 7), _gradients(ink, 14), _zones(ink), _projections(ink), _profiles(ink),
                           _holes(ink)]).astype(np.float32)


def _gradients(ink: Features, cell: int) -> Features:
    """Gradient directions over overlapping cells of ``cell`` pixels, each cell normalised."""
    soft = cv2.GaussianBlur(ink, (3, 3), 0)
    dx, dy = cv2.Sobel(soft, cv2.CV_32F, 1, 0), cv2.Sobel(soft, cv2.CV_32F, 0, 1)
    strength, angle = cv2.cartToPolar(dx, dy)
    place = angle * (_DIRECTIONS / (2 * np.pi))
    low = np.floor(place).astype(np.int64)
    share = (place - low).astype(np.float32)
    planes = np.zeros((_DIRECTIONS, _SIDE, _SIDE), np.float32)
    rows, columns = np.indices(ink.shape)
    planes[low % _DIRECTIONS, rows, columns] += strength * (1 - share)
    planes[(low + 1) % _DIRECTIONS, rows, columns] += strength * share
    step = cell // 2
    starts = range(0, _SIDE - cell + 1, step)
    cells = np.array([planes[:, y:y + cell, x:x + cell].sum(axis=(1, 2)) for y in starts for x in starts])
    return np.asarray(cells / (np.linalg.norm(cells, axis=1, keepdims=True) + 1.0), np.float32).ravel()


def _zones(ink: Features) -> Features:
    """Mean ink of the 7x7 zones of 4x4 pixels."""
    return np.asarray(ink.reshape(7, 4, 7, 4).mean(axis=(1, 3)), np.float32).ravel()


def _projections(ink: Features) -> Features:
    """Ink of every row and column."""
    return np.concatenate([ink.mean(axis=0), ink.mean(axis=1)])


def _profiles(ink: Features) -> Features:
    """Distance from each side to the first ink, for every second row and column; and the strokes crossed."""
    mark = ink > 0.4
    sides = (mark, mark[:, ::-1], mark.T, mark.T[:, ::-1])
    depths = [np.where(side.any(axis=1), side.argmax(axis=1), _SIDE)[::2] / _SIDE for side in sides]
    crossings = [(np.diff(side.astype(np.int8), axis=1) == 1).sum(axis=1)[::2] for side in (mark, mark.T)]
    return np.concatenate([*depths, *crossings]).astype(np.float32)


def _holes(ink: Features) -> Features:
    """Number of enclosed areas, and size and place of the largest."""
    paper = cv2.copyMakeBorder((ink <= 0.35).astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=1)
    count, _, stats, centers = cv2.connectedComponentsWithStats(paper, connectivity=4)
    inside = [i for i in range(1, count) if stats[i, cv2.CC_STAT_LEFT] > 0 and stats[i, cv2.CC_STAT_AREA] > 2]
    if not inside:
        return np.zeros(4, np.float32)
    largest = max(inside, key=lambda i: int(stats[i, cv2.CC_STAT_AREA]))
    x, y = centers[largest]
    return np.array([len(inside), stats[largest, cv2.CC_STAT_AREA] / _SIDE**2, x / _SIDE, y / _SIDE], np.float32)


def forest_predictions(train: Sequence[Path], train_labels: Sequence[str], test: Sequence[Path], *, seed: int = 0,
                       jobs: int | None = None) -> list[str]:
    """Labels for ``test`` by a random forest of 500 trees that learned from ``train``."""
    forest = RandomForestClassifier(500, n_jobs=jobs, random_state=seed)
    forest.fit(feature_table(train), np.asarray(train_labels))
    return [str(label) for label in forest.predict(feature_table(test))]


def feature_table(paths: Sequence[Path]) -> Features:
    """Features of many images, float32 [N, F]."""
    return np.stack([features(read_image(path)) for path in paths])
