"""torch: the program, and its archive of plain tensors and a graph of aten operators (.pt2)."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import torch
from torch import fx, nn

from distrib.errors import BundleError, MissingPartError
from distrib.export.table import first_line
from distrib.runtimes.quiet import quiet

# What tracing notes about source files: paths of this machine, and nothing that running needs.
_TRACES = ("stack_trace", "nn_module_stack", "source_fn_stack", "torch_fn", "from_node")


def trace(module: nn.Module, side: int) -> torch.export.ExportedProgram:
    """The graph from uint8 images_NHWC [N, side, side, 3] to logits_NK, for any N. Raises BundleError."""
    pixels = torch.zeros((2, side, side, 3), dtype=torch.uint8)
    try:
        with quiet(), torch.no_grad():
            program = torch.export.export(module, (pixels,),
                                          dynamic_shapes={"images_NHWC": {0: torch.export.Dim("batch", min=1)}})
    except Exception as error:  # tracing runs the model's own code
        raise BundleError(f"the model can not be traced: {first_line(error)}", "no bundle was written",
                          "choose a model of the table, or make its forward traceable by torch.export") from error
    _strip(program)
    return program


def write(program: torch.export.ExportedProgram, folder: Path) -> list[Path]:
    """See `distrib.export.table.Write`."""
    path = folder / "model.pt2"
    archive = io.BytesIO()  # torch's own file writer aborts the process where the disk is full
    with quiet():
        torch.export.save(program, archive)
    with zipfile.ZipFile(archive) as records:
        if any(name.endswith("/data/weights/model.pt") for name in records.namelist()):  # as torch 2.8 does
            raise MissingPartError(f"torch {torch.__version__} writes the weights of its archives as a pickle",
                                   "no bundle was written", "export with torch 2.13, or with --format onnx,openvino")
    path.write_bytes(archive.getvalue())
    return [path]


def _strip(program: torch.export.ExportedProgram) -> None:
    """Leave out what would be unpickled or compiled on loading; see `distrib.runtimes.archive`."""
    for module in program.graph_module.modules():
        if isinstance(module, fx.GraphModule):
            for node in module.graph.nodes:
                for name in _TRACES:
                    node.meta.pop(name, None)
    program._guards_code = []  # the gate compares outputs; callers pass [N, side, side, 3] of uint8
    program._example_inputs = None  # else written as a pickle
