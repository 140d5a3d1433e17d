"""The table of export formats: a name to what writes its files."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from distrib.bundle import FormatName
from distrib.errors import BundleError, ConfigError, DistribError, MissingPartError

if TYPE_CHECKING:
    import torch

Write = Callable[["torch.export.ExportedProgram", Path], list[Path]]
"""(program from uint8 images_NHWC to float32 logits_NK, any batch; folder) -> the files written there."""

_FORMATS: dict[FormatName, str] = {  # openvino after onnx, whose file it reads
    "torch": "distrib.export.torch_format:write",
    "onnx": "distrib.export.onnx_format:write",
    "openvino": "distrib.export.openvino_format:write",
}


def parse_formats(names: Sequence[str]) -> list[FormatName]:
    """Known formats, each once, in the order of the table. Raises ConfigError."""
    wanted = {part.strip() for name in names for part in name.split(",")}
    unknown = sorted(wanted - set(_FORMATS))
    if unknown or not wanted:
        raise ConfigError(f"--format {','.join(unknown)!r} is unknown", "nothing was exported",
                          f"choose some of {', '.join(_FORMATS)}")
    return [name for name in _FORMATS if name in wanted]


def write_format(name: FormatName, program: torch.export.ExportedProgram, folder: Path) -> list[Path]:
    """Write a format's files. Raises BundleError, MissingPartError; OSError."""
    module, _, attribute = _FORMATS[name].partition(":")
    try:
        write: Write = getattr(importlib.import_module(module), attribute)
    except ImportError as error:
        raise MissingPartError(f"the format {name!r} needs a package that can not be imported ({error})",
                               "nothing was exported", "install it, or choose other formats with --format") from error
    try:
        return write(program, folder)
    except (DistribError, OSError):
        raise
    except Exception as error:  # converters raise whatever they meet
        raise BundleError(f"the model can not be written as {name}: {first_line(error)}", "no bundle was written",
                          "choose other formats with --format, or a model of the table") from error


def first_line(error: BaseException) -> str:
    """A library's message, as the end of a sentence."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
