"""The table of runtimes: a format's name to what runs its files.

Images are run one by one, each by a single thread, as many at a time as there are cores: so an image's
logits depend on nothing but the image and the processor, not on what else is in the batch nor on the
number of threads. It costs nothing: ResNet-50 at 224 px on one AVX-512 core ran 16.5 images/s singly and
15.6 in batches of 16 with OpenVINO, 16.0 and 15.7 with ONNX Runtime.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from distrib.bundle import FormatName, LoadedBundle
from distrib.errors import BundleError, DistribError, MissingPartError
from distrib.scoring import Forward, Images, Logits, compute_threads

Open = Callable[[Sequence[Path], int | None, int], Forward]
"""(files, side, threads) -> a forward that computes with one thread and may be called from ``threads`` at once.

With a ``side`` it takes exactly one image [1, side, side, 3] a call; with None any batch.
"""

_RUNTIMES: dict[FormatName, tuple[str, str]] = {  # name -> (module:attribute, package that it needs)
    "openvino": ("distrib.runtimes.openvino_runtime:open_model", "openvino"),
    "onnx": ("distrib.runtimes.onnx_runtime:open_model", "onnxruntime"),
    "torch": ("distrib.runtimes.torch_runtime:open_model", "torch"),
    "openvino-bf16": ("distrib.runtimes.openvino_runtime:open_bf16", "openvino"),
    "openvino-int8": ("distrib.runtimes.openvino_runtime:open_model", "openvino"),
    "onnx-int8": ("distrib.runtimes.onnx_runtime:open_model", "onnxruntime"),
}


def open_files(name: FormatName, files: Sequence[Path], side: int, threads: int = 1, *,
               any_batch: bool = False) -> Forward:
    """Open model files, for one image a call or for any batch; see `Open`.

    Raises MissingPartError, or BundleError if the runtime refuses the files or fails on a black image.
    """
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # else onnxruntime reports its use to Microsoft, from 1.29 on
    where, package = _RUNTIMES[name]
    module, _, attribute = where.partition(":")
    try:
        importlib.import_module(package)
    except ImportError as error:
        raise MissingPartError(f"the format {name!r} needs the package {package}, which can not be imported ({error})",
                               "the model was not loaded", f"pip install {package}, or choose another format with "
                               "--runtime") from error
    open_model: Open = getattr(importlib.import_module(module), attribute)
    try:
        forward = open_model(files, None if any_batch else side, threads)
        # In this thread, before there are others: OpenVINO's first call, made by two threads at once, can
        # deadlock (seen in 2026.4.1: a C++ static whose initialiser waits for the interpreter lock).
        forward(np.zeros((1, side, side, 3), dtype=np.uint8))
        return forward
    except DistribError:
        raise
    except Exception as error:  # each library has its own exceptions for a file that it does not like
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise BundleError(f"{package} can not load {files[0]}: {reason}", "there is no model to run",
                          "export the bundle again with the versions installed here, or choose another "
                          "--runtime") from error


class Runtime:
    """A bundle's model, ready to run. A context manager: leaving it ends its threads."""

    def __init__(self, loaded: LoadedBundle, wish: str | None = None, threads: int | None = None) -> None:
        """Raises BundleError, MissingPartError."""
        self.name = loaded.choose(wish)
        self.threads = threads or compute_threads()
        self._pool = ThreadPoolExecutor(self.threads, thread_name_prefix=self.name)
        self._forward = open_files(self.name, loaded.files(self.name), loaded.bundle.preprocessing.image_size,
                                   self.threads)

    def __call__(self, images_NHWC: Images) -> Logits:
        """logits_NK; a row depends on its image alone, to the last bit."""
        return one_by_one(self._forward, images_NHWC, self._pool)

    def here(self, images_NHWC: Images) -> Logits:
        """The same, in the calling thread; at most ``threads`` threads may call at a time."""
        return np.concatenate([self._forward(images_NHWC[i:i + 1]) for i in range(len(images_NHWC))])

    def __enter__(self) -> Runtime:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)


def one_by_one(forward: Forward, images_NHWC: Images, pool: ThreadPoolExecutor) -> Logits:
    """Every image in a call of its own, spread over a pool's threads."""
    return np.concatenate(list(pool.map(forward, np.split(images_NHWC, len(images_NHWC)))))
