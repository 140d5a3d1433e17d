"""OpenVINO model files (.xml and .bin)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from queue import SimpleQueue

import numpy as np
import openvino as ov

from distrib.scoring import Forward, Images, Logits


def open_model(files: Sequence[Path], side: int | None, threads: int) -> Forward:
    """See `distrib.runtimes.table.Open`. What is not in 8 bits is computed in float32."""
    return _open(files, side, threads, "f32")


def open_bf16(files: Sequence[Path], side: int | None, threads: int) -> Forward:
    """See `distrib.runtimes.table.Open`. Computes in bfloat16 where the processor can, else in float32."""
    return _open(files, side, threads, "bf16")


def _open(files: Sequence[Path], side: int | None, threads: int, precision: str) -> Forward:
    core = ov.Core()
    model = core.read_model(next(path for path in files if path.suffix == ".xml"))
    if side is not None:
        model.reshape({0: [1, side, side, 3]})  # a fixed shape saves the runtime its dynamic machinery
    compiled = core.compile_model(model, "CPU", {
        # Left alone, OpenVINO computes in bf16 where the processor can, which is not what was checked.
        "INFERENCE_PRECISION_HINT": precision,
        # As many streams as threads: each request is computed by one thread.
        "NUM_STREAMS": str(threads),
        "INFERENCE_NUM_THREADS": str(threads),
        "ENABLE_CPU_PINNING": False,
    })
    requests: SimpleQueue[ov.InferRequest] = SimpleQueue()
    for _ in range(threads):
        requests.put(compiled.create_infer_request())

    def forward(images_NHWC: Images) -> Logits:
        request = requests.get()
        try:
            result = request.infer([np.ascontiguousarray(images_NHWC)], share_inputs=True)
            return np.array(result[0], dtype=np.float32)
        finally:
            requests.put(request)

    return forward
