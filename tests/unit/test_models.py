from __future__ import annotations

import sys
import types
from pathlib import Path

import pytest
import torch
from torch import nn

from distrib.errors import ConfigError, MissingPartError
from distrib.models.table import build_model, model_names

OWN = [name for name in model_names() if "/" not in name and ":" not in name]


def on_meta(name: str, num_classes: int, dropout: float = 0.0) -> nn.Module:
    with torch.device("meta"):  # shapes alone, without the work
        return build_model(name, num_classes, dropout)


# Trainable parameters and named tensors as torchvision documents and saves them, for ImageNet's 1000 classes.
@pytest.mark.parametrize(("name", "parameters", "tensors"), [
    ("resnet18", 11_689_512, 122), ("resnet34", 21_797_672, 218), ("resnet50", 25_557_032, 320)])
def test_residual_networks_are_the_well_known_ones(name: str, parameters: int, tensors: int) -> None:
    model = on_meta(name, 1000)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    state = model.state_dict()
    assert len(state) == tensors
    deep = name == "resnet50"
    for known, shape in (
        ("conv1.weight", (64, 3, 7, 7)), ("bn1.running_var", (64,)), ("bn1.num_batches_tracked", ()),
        ("layer1.0.conv1.weight", (64, 64, 1, 1) if deep else (64, 64, 3, 3)),
        ("layer2.0.downsample.0.weight", (512, 256, 1, 1) if deep else (128, 64, 1, 1)),
        ("layer2.0.downsample.1.bias", (512,) if deep else (128,)),
        ("layer4.1.bn2.weight", (512,)), ("fc.weight", (1000, 2048) if deep else (1000, 512)), ("fc.bias", (1000,)),
    ):
        assert state[known].shape == shape, known
    assert ("layer1.0.downsample.0.weight" in state) == deep
    # v1.5: the 3x3 convolution has the stride.
    strided = model.get_submodule("layer2.0.conv2" if deep else "layer2.0.conv1")
    assert isinstance(strided, nn.Conv2d)
    assert strided.stride == (2, 2)


def test_the_last_feature_map_is_a_thirty_second_of_the_image() -> None:
    model = on_meta("resnet50", 10)
    shapes: list[torch.Size] = []
    model.get_submodule("layer4").register_forward_hook(lambda _, __, out: shapes.append(out.shape))
    assert model(torch.empty(2, 3, 224, 224, device="meta")).shape == (2, 10)
    assert shapes == [(2, 2048, 7, 7)]


@pytest.mark.parametrize("name", OWN)
@pytest.mark.parametrize(("classes", "side"), [(2, 64), (7, 33)])
def test_every_model_of_ours_gives_logits(name: str, classes: int, side: int) -> None:
    model = on_meta(name, classes, 0.5).eval()
    assert model(torch.empty(3, 3, side, side, device="meta")).shape == (3, classes)
    assert any(isinstance(module, nn.Dropout) and module.p == 0.5 for module in model.modules())
    assert not any(isinstance(module, nn.Dropout) for module in on_meta(name, classes).modules())
    assert on_meta(name, classes).state_dict().keys() == model.state_dict().keys()  # dropout renames nothing


def test_the_small_network_takes_the_smallest_images_and_its_start_is_the_seeds() -> None:
    def logits(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        model = build_model("small_cnn", 3).eval()
        with torch.inference_mode():
            out: torch.Tensor = model(torch.ones(1, 3, 8, 8))
        return out

    assert logits(0).shape == (1, 3)
    assert logits(0).isfinite().all()
    assert torch.equal(logits(0), logits(0))
    assert not torch.equal(logits(0), logits(1))


@pytest.mark.parametrize("name", ["resnet19", "", "resnet18/x", "timm/", "a b", "../evil:x", "os.system", "x:y:z",
                                  "resnet18 "])
def test_unknown_names_are_refused_with_the_known_ones(name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build_model(name, 2)
    assert repr(name) in caught.value.fact
    assert "resnet50" in caught.value.remedy
    assert "small_cnn" in caught.value.remedy


@pytest.mark.parametrize("library", ["timm", "torchvision", "monai", "transformers"])
def test_a_library_that_is_not_installed_is_named(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, library, None)  # importing it fails, also where a site has it
    with pytest.raises(MissingPartError, match=f"needs the package {library}"):
        build_model(f"{library}/resnet18", 2)


def test_a_library_built_for_another_torch_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "timm.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "timm", raising=False)
    with pytest.raises(MissingPartError, match="torchvision::nms does not exist"):
        build_model("timm/vit_tiny", 2)


def test_a_librarys_model_is_built_by_its_own_name(monkeypatch: pytest.MonkeyPatch) -> None:
    timm = types.ModuleType("timm")
    timm.list_models = lambda: ["vit_tiny"]  # type: ignore[attr-defined]
    timm.create_model = (  # type: ignore[attr-defined]
        lambda name, pretrained, num_classes, drop_rate: nn.Linear(1, num_classes) if not pretrained else None)
    monkeypatch.setitem(sys.modules, "timm", timm)
    model = build_model("timm/vit_tiny", 5, 0.1)
    assert isinstance(model, nn.Linear)
    assert model.out_features == 5
    with pytest.raises(ConfigError, match="timm has no such model"):
        build_model("timm/vit_huge", 5)


MODULE = """\
from torch import nn

def net(num_classes, dropout):
    return nn.Sequential(nn.Flatten(), nn.Dropout(dropout), nn.LazyLinear(num_classes))

def name(num_classes, dropout):
    return "no module"

def fixed(size):
    return nn.Linear(size, size)

constant = 3
"""


def test_a_function_of_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "users_models.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    model = build_model("users_models:net", 4, 0.25)
    assert isinstance(model, nn.Sequential)
    assert isinstance(model[1], nn.Dropout)
    assert model[1].p == 0.25
    for name, message in (("users_models:none", "no attribute 'none'"), ("no_such_module:net", "No module named"),
                          ("users_models:name", "gave a str, not a torch module"),
                          ("users_models:constant", "is a int, not a function"),
                          ("users_models:fixed", "does not take num_classes and dropout"), ("os:path", "is a module")):
        with pytest.raises(ConfigError, match=message) as caught:
            build_model(name, 4)
        assert repr(name) in caught.value.fact
