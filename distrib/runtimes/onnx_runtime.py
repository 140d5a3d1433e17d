"""ONNX files, run by ONNX Runtime."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import onnxruntime as ort

from distrib.scoring import Forward, Images, Logits

_ERRORS_ONLY = 3


def open_model(files: Sequence[Path], side: int | None, threads: int) -> Forward:  # noqa: ARG001
    """See `distrib.runtimes.table.Open`. A session computes in the calling thread and may have many callers."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = _ERRORS_ONLY
    options.use_deterministic_compute = True
    (path,) = files
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    (name,) = (argument.name for argument in session.get_inputs())

    def forward(images_NHWC: Images) -> Logits:
        (logits_NK,) = session.run(None, {name: images_NHWC})
        return logits_NK  # type: ignore[no-any-return]

    return forward
