"""torch.export archives (.pt2)."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from distrib.runtimes.archive import check_archive
from distrib.runtimes.quiet import quiet
from distrib.scoring import Forward, Images, Logits


def read_weights(path: Path) -> dict[str, Tensor]:
    """The exported model's parameters and buffers, by its own names. Raises BundleError as `open_model`."""
    state = _program(path).state_dict
    return {name.removeprefix("model."): tensor.detach() for name, tensor in state.items() if name.startswith("model.")}


def open_model(files: Sequence[Path], side: int | None, threads: int) -> Forward:  # noqa: ARG001
    """See `distrib.runtimes.table.Open`. From then on torch computes with one thread in this process.

    Raises BundleError for an archive that could do more than compute.
    """
    (path,) = files
    with quiet():
        module = _program(path).module(check_guards=False)
    local = threading.local()

    def forward(images_NHWC: Images) -> Logits:
        if not hasattr(local, "ready"):
            torch.set_num_threads(1)  # holds for the calling thread and for new ones
            local.ready = True
        with torch.inference_mode():
            logits_NK = module(torch.from_numpy(np.ascontiguousarray(images_NHWC)))
        return logits_NK.numpy()  # type: ignore[no-any-return]

    return forward


def _program(path: Path) -> torch.export.ExportedProgram:
    check_archive(path)
    with quiet():
        return torch.export.load(path)
