"""The table of models: a name to a function of (num_classes, dropout) that builds one.

Every model takes float32 images_NCHW of 3 normalised channels and gives logits_NK.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable
from typing import Any

from torch import nn

from distrib.errors import ConfigError, MissingPartError

_OWN = {
    "resnet18": "distrib.models.resnet:resnet18",
    "resnet34": "distrib.models.resnet:resnet34",
    "resnet50": "distrib.models.resnet:resnet50",
    "small_cnn": "distrib.models.small:small_cnn",
}

# Libraries that some sites have: prefix -> (module:function taking (name, num_classes, dropout), package).
_LIBRARIES = {
    "timm": ("distrib.models.libraries:timm_model", "timm"),
    "torchvision": ("distrib.models.libraries:torchvision_model", "torchvision"),
    "monai": ("distrib.models.libraries:monai_model", "monai"),
    "transformers": ("distrib.models.libraries:transformers_model", "transformers"),
}

_FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def model_names() -> list[str]:
    """Every name that the table takes, for messages."""
    return [*_OWN, *(f"{library}/NAME" for library in _LIBRARIES), "package.module:function"]


def build_model(name: str, num_classes: int, dropout: float = 0.0) -> nn.Module:
    """Build a model with torch's current random state.

    Raises ConfigError for an unknown name, MissingPartError for a library that is not installed.
    """
    library, _, rest = name.partition("/")
    if name in _OWN:
        return _built(name, _attribute(_OWN[name])(num_classes=num_classes, dropout=dropout))
    if rest and library in _LIBRARIES:
        where, package = _LIBRARIES[library]
        try:
            importlib.import_module(package)
        except Exception as error:  # built for another torch, they fail with whatever they meet
            raise MissingPartError(f"model.name = {name!r} needs the package {package}, which can not be imported "
                                   f"({error})", "nothing was started",
                                   f"install a {package} that fits this torch, or choose one of {', '.join(_OWN)}"
                                   ) from error
        return _built(name, _attribute(where)(rest, num_classes, dropout))
    if _FUNCTION.fullmatch(name):
        try:
            function = _attribute(name)
        except (ImportError, AttributeError) as error:
            raise ConfigError(f"model.name = {name!r}: {error}", "nothing was started",
                              "check that the module is on PYTHONPATH and has that function") from error
        if not callable(function):
            raise ConfigError(f"model.name = {name!r} is a {type(function).__name__}, not a function",
                              "nothing was started", "name a function of (num_classes, dropout)")
        _check_arguments(name, function)
        return _built(name, function(num_classes=num_classes, dropout=dropout))
    raise ConfigError(f"model.name = {name!r} is unknown", "nothing was started",
                      f"choose one of {', '.join(model_names())}")


def _check_arguments(name: str, function: Callable[..., Any]) -> None:
    """Raises ConfigError for a function that can not be called as ours are; a bug inside it is another matter."""
    try:
        inspect.signature(function).bind(num_classes=2, dropout=0.0)
    except TypeError as error:
        raise ConfigError(f"model.name = {name!r} does not take num_classes and dropout: {error}",
                          "nothing was started", "name a function of (num_classes, dropout)") from error
    except ValueError:  # some built-in functions do not tell
        pass


def _attribute(where: str) -> Callable[..., Any]:
    module, _, attribute = where.partition(":")
    found: Callable[..., Any] = getattr(importlib.import_module(module), attribute)
    return found


def _built(name: str, model: Any) -> nn.Module:
    if not isinstance(model, nn.Module):
        raise ConfigError(f"model.name = {name!r} gave a {type(model).__name__}, not a torch module",
                          "nothing was started", "let the function return a torch.nn.Module")
    return model
