"""A model as a function of pixels: the normalisation is inside, so nobody downstream can get it wrong."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from distrib.models.normalise import Normalise
from distrib.scoring import Forward, Images, Logits


class PixelModel(nn.Module):
    """uint8 images_NHWC (RGB) to float32 logits_NK: `Normalise`, then the model.

    Validation, `evaluate` and `export` all run this module.
    """

    def __init__(self, model: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.model = model
        self.normalise = Normalise(mean, std)

    def forward(self, images_NHWC: Tensor) -> Tensor:
        logits_NK: Tensor = self.model(self.normalise(images_NHWC))
        return logits_NK


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside the block; afterwards every layer has the mode it had (frozen ones differ)."""
    before = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in before:
            module.training = training


def torch_forward(model: nn.Module, mean: Sequence[float], std: Sequence[float],
                  precision: Literal["fp32", "bf16"] = "fp32") -> Forward:
    """A forward for `score_split` from a torch model; call it within `evaluation_mode`. Thread-safe."""
    of_pixels = module_forward(PixelModel(model, mean, std), precision)

    def forward(images_NHWC: Images) -> Logits:
        assert not model.training
        return of_pixels(images_NHWC)

    return forward


def module_forward(module: nn.Module, precision: Literal["fp32", "bf16"] = "fp32") -> Forward:
    """A forward for `score_split` from a module in evaluation mode that takes uint8 images_NHWC. Thread-safe."""

    def forward(images_NHWC: Images) -> Logits:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            logits_NK = module(torch.from_numpy(np.ascontiguousarray(images_NHWC)))
        return logits_NK.to(torch.float32).numpy()  # type: ignore[no-any-return]

    return forward
