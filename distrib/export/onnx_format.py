"""ONNX: one file with the weights inside."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx
import torch

from distrib.errors import BundleError
from distrib.runtimes.quiet import quiet

FILE_NAME = "model.onnx"
_MOST_BYTES = (1 << 31) - (1 << 20)  # protobuf's limit for one message, less the graph


def write(program: torch.export.ExportedProgram, folder: Path) -> list[Path]:
    """See `distrib.export.table.Write`."""
    num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in program.state_dict.values())
    if num_bytes > _MOST_BYTES:
        raise BundleError(f"the weights take {num_bytes} bytes, and an ONNX file holds 2 GiB", "no bundle was written",
                          "choose --format torch")
    with quiet():
        exported = torch.onnx.export(program, (), input_names=["images_NHWC"], output_names=["logits_NK"],
                                     dynamo=True, external_data=False, verbose=False)
        assert exported is not None
        model = exported.model_proto
    strip(model)
    onnx.checker.check_model(model)
    path = folder / FILE_NAME
    path.write_bytes(model.SerializeToString(deterministic=True))
    return [path]


@contextmanager
def onnx_file(program: torch.export.ExportedProgram, folder: Path) -> Iterator[Path]:
    """The program's ONNX file: the one that lies in the folder already, or else one for the block only."""
    if (source := folder / FILE_NAME).exists():
        yield source
        return
    with tempfile.TemporaryDirectory(dir=folder, prefix=".onnx-") as temporary:
        (source,) = write(program, Path(temporary))
        yield source


def strip(model: onnx.ModelProto) -> None:
    """Leave out what the exporter notes about source files and torch's graph."""
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
