"""The table of export formats: a name to what writes its files."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Container, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distrib.bundle import PREFERENCE, ExactName, FormatName, ReducedName
from distrib.errors import BundleError, ConfigError, DistribError, MissingPartError
from distrib.scoring import Images

if TYPE_CHECKING:
    import torch

Write = Callable[["torch.export.ExportedProgram", Path], list[Path]]
"""(program from uint8 images_NHWC to float32 logits_NK, any batch; folder) -> the files written there."""
Reduce = Callable[[Path, Path, Images], list[Path]]
"""(the model's ONNX file, folder, images_NHWC of the training split to take ranges from) -> the files written there."""

_FORMATS: dict[ExactName, str] = {  # openvino after onnx, whose file it reads
    "torch": "distrib.export.torch_format:write",
    "onnx": "distrib.export.onnx_format:write",
    "openvino": "distrib.export.openvino_format:write",
}
_REDUCED: dict[ReducedName, str] = {
    "openvino-bf16": "distrib.export.openvino_format:write_bf16",
    "openvino-int8": "distrib.export.openvino_format:write_int8",
    "onnx-int8": "distrib.export.onnx_int8:write",
}


_ONNX = ("onnx", "onnxscript")
_NEEDS: dict[FormatName, tuple[str, ...]] = {  # beside torch; to write, and to read back
    "onnx": (*_ONNX, "onnxruntime"),
    "openvino": (*_ONNX, "openvino"),
    "openvino-bf16": (*_ONNX, "openvino"),
    "openvino-int8": (*_ONNX, "openvino", "nncf"),
    "onnx-int8": (*_ONNX, "onnxruntime"),
}


def parse_formats(names: Sequence[str]) -> tuple[list[ExactName], list[ReducedName]]:
    """Known formats, exact and reduced ones, each once, in the order of the tables. Raises ConfigError."""
    wanted = {part.strip() for name in names for part in name.split(",")}
    known = (*_FORMATS, *_REDUCED)
    unknown = sorted(wanted - set(known))
    if unknown or not wanted:
        raise ConfigError(f"--format {','.join(unknown)!r} is unknown", "nothing was exported",
                          f"choose some of {', '.join(known)}")
    exact = [name for name in _FORMATS if name in wanted]
    if not exact:
        raise ConfigError(f"--format {','.join(sorted(wanted))} has no exact format", "nothing was exported",
                          f"add one of {', '.join(_FORMATS)}: it runs by default, and the others are compared with it")
    return exact, [name for name in _REDUCED if name in wanted]


def check_packages(names: Sequence[FormatName]) -> None:
    """Raises MissingPartError for a format whose packages are not installed; imports none of them."""
    for name in names:
        for package in _NEEDS.get(name, ()):
            if importlib.util.find_spec(package) is None:
                raise _missing(name, f"the package {package}, which is not installed", package)


def default_format(names: Container[FormatName]) -> ExactName:
    """The format that runs by default, of those in a bundle."""
    return next(name for name in PREFERENCE if name in names)


def write_format(name: ExactName, program: torch.export.ExportedProgram, folder: Path) -> list[Path]:
    """Write a format's files. Raises BundleError, MissingPartError; OSError."""
    return _written(name, _FORMATS[name], program, folder)


def write_reduced(name: ReducedName, source: Path, folder: Path, images_NHWC: Images) -> list[Path]:
    """Write a reduced format's files; see `Reduce`. Raises BundleError, MissingPartError; OSError."""
    return _written(name, _REDUCED[name], source, folder, images_NHWC)


def _written(name: FormatName, where: str, *arguments: Any) -> list[Path]:
    module, _, attribute = where.partition(":")
    try:
        write: Callable[..., list[Path]] = getattr(importlib.import_module(module), attribute)
        return write(*arguments)
    except ImportError as error:
        raise _missing(name, f"a package that can not be imported ({error})", error.name) from error
    except (DistribError, OSError):
        raise
    except Exception as error:  # converters raise whatever they meet
        raise BundleError(f"the model can not be written as {name}: {first_line(error)}", "no bundle was written",
                          "choose other formats with --format, or a model of the table") from error


def _missing(name: FormatName, what: str, package: str | None) -> MissingPartError:
    pip = "'distrib[int8]'" if name == "openvino-int8" and package in (None, "nncf") else package
    return MissingPartError(f"the format {name!r} needs {what}", "no bundle was written",
                            f"install it with pip install {pip}, or choose other formats with --format" if pip else
                            "install it, or choose other formats with --format")


def first_line(error: BaseException) -> str:
    """A library's message, as the end of a sentence."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
