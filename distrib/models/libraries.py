"""Adapters to model libraries that a site may have. Random weights; ours come from `model.weights`."""

from __future__ import annotations

import importlib
from typing import Any

from torch import Tensor, nn

from distrib.errors import ConfigError


def timm_model(name: str, num_classes: int, dropout: float) -> nn.Module:
    """A model of timm, by its own name."""
    timm: Any = importlib.import_module("timm")
    if name not in timm.list_models():
        raise _unknown("timm", name)
    model: nn.Module = timm.create_model(name, pretrained=False, num_classes=num_classes, drop_rate=dropout)
    return model


def torchvision_model(name: str, num_classes: int, dropout: float) -> nn.Module:
    """A classification model of torchvision, by its own name."""
    models: Any = importlib.import_module("torchvision.models")
    if name not in models.list_models(module=models):
        raise _unknown("torchvision", name)
    _no_dropout("torchvision", dropout)
    model: nn.Module = models.get_model(name, weights=None, num_classes=num_classes)
    return model


def monai_model(name: str, num_classes: int, dropout: float) -> nn.Module:
    """A 2-D model of monai.networks.nets: resnet18 ... resnet152, or a densenet."""
    nets: Any = importlib.import_module("monai.networks.nets")
    builder = getattr(nets, name, None)
    if builder is None or not name.startswith(("resnet", "densenet")):
        raise _unknown("monai", name)
    _no_dropout("monai", dropout)
    model: nn.Module
    if name.startswith("resnet"):
        # MONAI's default stem is for volumes: stride 1 in the first convolution, several times the work.
        model = builder(spatial_dims=2, n_input_channels=3, num_classes=num_classes, conv1_t_stride=2)
    else:
        model = builder(spatial_dims=2, in_channels=3, out_channels=num_classes)
    return model


def transformers_model(name: str, num_classes: int, dropout: float) -> nn.Module:
    """An image classifier of transformers by its model type, such as resnet, vit or convnext."""
    transformers: Any = importlib.import_module("transformers")
    _no_dropout("transformers", dropout)
    try:
        config = transformers.AutoConfig.for_model(name, num_labels=num_classes)
        return _LogitsOnly(transformers.AutoModelForImageClassification.from_config(config))
    except ValueError as error:
        raise _unknown("transformers", name) from error


class _LogitsOnly(nn.Module):
    """Takes the logits out of a transformers output object."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images_NCHW: Tensor) -> Tensor:
        logits_NK: Tensor = self.model(images_NCHW).logits
        return logits_NK


def _unknown(library: str, name: str) -> ConfigError:
    return ConfigError(f"model.name = '{library}/{name}': {library} has no such model", "nothing was started",
                       f"see the names in {library}'s documentation")


def _no_dropout(library: str, dropout: float) -> None:
    if dropout:
        raise ConfigError(f"model.dropout = {dropout}: models of {library} do not take it", "nothing was started",
                          "leave model.dropout out")
