"""OpenVINO: .xml and .bin, converted from ONNX by OpenVINO's own reader."""

from __future__ import annotations

import os
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import openvino as ov

from distrib.export.onnx_format import onnx_file
from distrib.runtimes.quiet import quiet
from distrib.scoring import Images

if TYPE_CHECKING:
    import torch


def write(program: torch.export.ExportedProgram, folder: Path) -> list[Path]:
    """See `distrib.export.table.Write`. Float32 weights."""
    with onnx_file(program, folder) as source:
        return _save(_read(source), folder / "model.xml")


def write_bf16(source: Path, folder: Path, images_NHWC: Images) -> list[Path]:  # noqa: ARG001
    """See `distrib.export.table.Reduce`. Weights in float16, which rounds less than bfloat16 and takes as little;
    `distrib.runtimes.openvino_runtime.open_bf16` computes in bfloat16."""
    return _save(_read(source), folder / "model-bf16.xml", half=True)


def write_int8(source: Path, folder: Path, images_NHWC: Images) -> list[Path]:
    """See `distrib.export.table.Reduce`. Weights and activations in 8 bits, by NNCF's post-training quantisation."""
    os.environ["NNCF_CI"] = "1"  # else NNCF reports its use over the network
    with quiet(), redirect_stdout(sys.stderr):  # it shows its progress
        import nncf

        quantised = nncf.quantize(
            _read(source), nncf.Dataset(np.split(images_NHWC, len(images_NHWC))), subset_size=len(images_NHWC),
            target_device=nncf.TargetDevice.CPU, preset=nncf.QuantizationPreset.MIXED,
        )
    return _save(quantised, folder / "model-int8.xml")


def _read(source: Path) -> ov.Model:
    return ov.Core().read_model(source)  # not ov.convert_model, which reports its use over the network


def _save(model: ov.Model, path: Path, *, half: bool = False) -> list[Path]:
    ov.save_model(model, path, compress_to_fp16=half)
    return [path, path.with_suffix(".bin")]
