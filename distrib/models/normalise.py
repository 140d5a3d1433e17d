"""Pixels as a model takes them: the one place that knows the formula."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Normalise(nn.Module):
    """uint8 images_NHWC to float32 images_NCHW, channels last in memory: (x / 255 - mean) / std.

    Mean and standard deviation are those of each channel, on the scale 0 to 1.
    """

    scale_C11: Tensor
    shift_C11: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        std_3 = torch.tensor(std, dtype=torch.float64)
        self.register_buffer("scale_C11", (1 / (255 * std_3)).float().view(3, 1, 1))
        self.register_buffer("shift_C11", (-torch.tensor(mean, dtype=torch.float64) / std_3).float().view(3, 1, 1))

    def forward(self, images_NHWC: Tensor) -> Tensor:
        # NHWC seen as NCHW is what torch calls channels_last: nothing is moved.
        return images_NHWC.permute(0, 3, 1, 2).to(torch.float32).mul_(self.scale_C11).add_(self.shift_C11)
