"""What the processor computes in, and images as the model takes them."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from distrib.config import Rgb

_BF16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}


def processor_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """Instruction sets of this machine's first processor; empty where the kernel does not tell."""
    try:
        lines = cpuinfo.read_text(errors="replace").splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line.partition(":")[2] for line in lines if line.startswith(("flags", "Features"))), "")
                     .split())


def resolve_precision(wish: Literal["auto", "fp32", "bf16"]) -> Literal["fp32", "bf16"]:
    """bf16 where the processor multiplies in it, unless something else is wished for."""
    if wish != "auto":
        return wish
    return "bf16" if processor_flags() & _BF16_FLAGS else "fp32"


class Normalise:
    """uint8 images_NHWC to float32 images_NCHW, channels last in memory: (x / 255 - mean) / std."""

    def __init__(self, mean: Rgb, std: Rgb) -> None:
        std_3 = torch.tensor(std, dtype=torch.float64)
        self._scale_C11 = (1 / (255 * std_3)).float().view(3, 1, 1)
        self._shift_C11 = (-torch.tensor(mean, dtype=torch.float64) / std_3).float().view(3, 1, 1)

    def __call__(self, images_NHWC: Tensor) -> Tensor:
        # NHWC seen as NCHW is what torch calls channels_last: nothing is moved.
        return images_NHWC.permute(0, 3, 1, 2).float().mul_(self._scale_C11).add_(self._shift_C11)
