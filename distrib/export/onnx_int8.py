"""ONNX in 8 bits: static quantisation by ONNX Runtime's own tools."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import onnx

from distrib.export.onnx_format import strip
from distrib.runtimes.quiet import quiet
from distrib.scoring import Images

_OPERATORS = ("Conv", "Gemm", "MatMul", "Relu", "Add", "MaxPool", "AveragePool", "GlobalAveragePool", "ReduceMean")
"""Those that compute, and those between them; others would only round once more."""


def write(source: Path, folder: Path, images_NHWC: Images) -> list[Path]:
    """See `distrib.export.table.Reduce`. Weights in int8, by channel; activations in uint8: what VNNI multiplies."""
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # see `distrib.runtimes.table.open_files`
    with quiet(), tempfile.TemporaryDirectory(dir=folder, prefix=".int8-") as temporary:
        from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
        from onnxruntime.quantization.shape_inference import quant_pre_process

        class Reader(CalibrationDataReader):  # type: ignore[misc]
            """One image a call."""

            def __init__(self) -> None:
                self.images = iter(images_NHWC)

            def get_next(self) -> dict[str, Images] | None:
                image = next(self.images, None)
                return None if image is None else {"images_NHWC": image[None]}

        simplified, quantised = Path(temporary) / "simplified.onnx", Path(temporary) / "quantised.onnx"
        quant_pre_process(source, simplified, skip_symbolic_shape=True)  # folds constants and batch norms
        quantize_static(simplified, quantised, Reader(), quant_format=QuantFormat.QDQ, per_channel=True,
                        activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
                        op_types_to_quantize=_present(simplified))
        model = onnx.load(quantised)
    strip(model)
    onnx.checker.check_model(model)
    path = folder / "model-int8.onnx"
    path.write_bytes(model.SerializeToString(deterministic=True))
    return [path]


def _present(path: Path) -> Sequence[str]:
    kinds = {node.op_type for node in onnx.load(path).graph.node}
    return [name for name in _OPERATORS if name in kinds]
