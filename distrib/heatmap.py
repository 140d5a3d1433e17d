"""Where a model looked: by how much its answer falls when a part of the image is covered.

Occlusion sensitivity, after Zeiler and Fergus, "Visualizing and Understanding Convolutional Networks", ECCV 2014,
section 4.2. It needs a model's answers alone, so it explains every format of a bundle, an ensemble too. It says what
this image's answer hangs on, not that the model is right.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from distrib.decision import softmax
from distrib.scoring import Forward, Images

CELLS = 8
"""Patches along a side. A map costs CELLS * CELLS + 1 images of the model."""

_LARGEST_SHARE = 0.6  # of the colour at the strongest place, so that the image stays visible


def occlusion_map(forward: Forward, image_HWC: Images, chosen: int, cells: int = CELLS) -> NDArray[np.float32]:
    """falls_CC, float32 [cells, cells]: the probability of class ``chosen``, less that with the cell covered.

    ``image_HWC`` is uint8 RGB as the model takes it. Covered cells take the image's mean colour. Positive where the
    answer hangs on the place, negative where the place speaks against it.
    """
    height, width, _ = image_HWC.shape
    rows = np.linspace(0, height, cells + 1).round().astype(int)
    columns = np.linspace(0, width, cells + 1).round().astype(int)
    covered = np.repeat(image_HWC[None], cells * cells + 1, axis=0)
    colour = image_HWC.reshape(-1, 3).mean(axis=0).round().astype(np.uint8)
    for cell in range(cells * cells):
        row, column = divmod(cell, cells)
        covered[cell, rows[row]:rows[row + 1], columns[column]:columns[column + 1]] = colour
    probabilities_N = softmax(forward(covered))[:, chosen]
    falls_N: NDArray[np.float32] = (probabilities_N[-1] - probabilities_N[:-1]).astype(np.float32)
    return falls_N.reshape(cells, cells)


def overlay(image_HWC: Images, falls_CC: NDArray[np.float32]) -> Images:
    """The image with the map over it, uint8 RGB [H, W, 3]: grey where nothing hangs on it, cividis where much does.

    The strongest place has the full colour whatever its size, so say the largest fall beside the picture. Cividis reads
    alike with and without colour vision (Nunez, Anderton and Renslow, PLoS ONE 2018).
    """
    height, width, _ = image_HWC.shape
    strength_CC = np.clip(falls_CC, 0, None)
    if (largest := float(strength_CC.max())) > 0:
        strength_CC = strength_CC / largest
    strength_HW = np.clip(cv2.resize(strength_CC, (width, height), interpolation=cv2.INTER_CUBIC), 0, 1)
    colours_HWC = cv2.applyColorMap((strength_HW * 255).round().astype(np.uint8), cv2.COLORMAP_CIVIDIS)[:, :, ::-1]
    grey_HWC = cv2.cvtColor(cv2.cvtColor(image_HWC, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    share_HW1 = _LARGEST_SHARE * strength_HW[:, :, None]
    result: Images = (grey_HWC * (1 - share_HW1) + colours_HWC * share_HW1).round().astype(np.uint8)
    return result
