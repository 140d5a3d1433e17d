"""OpenVINO: .xml and .bin with float32 weights, converted from ONNX by OpenVINO's own reader."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import openvino as ov

from distrib.export import onnx_format

if TYPE_CHECKING:
    import torch


def write(program: torch.export.ExportedProgram, folder: Path) -> list[Path]:
    """See `distrib.export.table.Write`. An ONNX file that lies there already is taken instead of a new one."""
    path = folder / "model.xml"
    with tempfile.TemporaryDirectory(dir=folder, prefix=".onnx-") as temporary:
        source = folder / onnx_format.FILE_NAME
        if not source.exists():
            (source,) = onnx_format.write(program, Path(temporary))
        # Not ov.convert_model, which reports its use over the network.
        model = ov.Core().read_model(source)
        ov.save_model(model, path, compress_to_fp16=False)
        del model  # it maps the temporary file
    return [path, path.with_suffix(".bin")]
