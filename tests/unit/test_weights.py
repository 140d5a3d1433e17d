from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from distrib.errors import ConfigError
from distrib.models.table import build_model
from distrib.models.weights import freeze, load_starting_weights, set_training, weights_sha256


def small(num_classes: int = 3, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return build_model("small_cnn", num_classes)


def test_the_digest_sees_names_and_values_and_nothing_else() -> None:
    state = {"b": torch.arange(6.0).view(2, 3), "a": torch.tensor(3), "c": torch.ones(4).bfloat16()}
    digest = weights_sha256(state)
    assert len(digest) == 64
    assert digest == weights_sha256({name: state[name].clone() for name in ("c", "a", "b")})
    assert digest == weights_sha256({**state, "b": state["b"].t().contiguous().t()})  # strides are no values
    others = [
        {**state, "b": state["b"] + torch.finfo(torch.float32).eps * 8},
        {**state, "a": torch.tensor(4)},
        {"x": state["b"], "a": state["a"], "c": state["c"]},
        {"bb": state["b"], "a": state["a"], "c": state["c"]},  # in the same order as before
        {"b": state["b"], "a": state["a"]},
        {**state, "b": -state["b"]},
        {"a": state["b"], "b": state["a"], "c": state["c"]},
    ]
    assert len({digest, *(weights_sha256(other) for other in others)}) == len(others) + 1


def test_the_digest_covers_parameters_and_buffers_in_any_memory_format() -> None:
    model = small()
    digest = weights_sha256(model.state_dict())
    assert weights_sha256(model.to(memory_format=torch.channels_last).state_dict()) == digest  # type: ignore[call-overload]
    model.stem[1].running_mean += 1  # type: ignore[index,union-attr]
    assert weights_sha256(model.state_dict()) != digest


def saved(path: Path, state: dict[str, Tensor]) -> Path:
    save_file({name: tensor.contiguous().clone() for name, tensor in state.items()}, path)
    return path


def test_weights_of_the_same_model_are_taken_over(tmp_path: Path) -> None:
    source, model = small(seed=1), small(seed=2)
    done = load_starting_weights(model, saved(tmp_path / "w.safetensors", source.state_dict()))
    assert weights_sha256(model.state_dict()) == weights_sha256(source.state_dict())
    assert (done.loaded, done.replaced) == (len(source.state_dict()), ())


def test_a_head_for_other_classes_stays_fresh(tmp_path: Path) -> None:
    source, model = small(10, seed=1), small(3, seed=2)
    fresh = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    done = load_starting_weights(model, saved(tmp_path / "w.safetensors", source.state_dict()))
    assert done.replaced == ("fc.bias", "fc.weight")
    assert done.loaded == len(fresh) - 2
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, (fresh if name.startswith("fc.") else source.state_dict())[name])


def test_a_file_without_a_head_or_counters_will_do(tmp_path: Path) -> None:
    source, model = small(seed=1), small(seed=2)
    state = {name: tensor for name, tensor in source.state_dict().items()
             if not name.startswith("fc.") and not name.endswith("num_batches_tracked")}
    done = load_starting_weights(model, saved(tmp_path / "w.safetensors", state))
    assert done.replaced == ("fc.bias", "fc.weight")
    assert torch.equal(model.state_dict()["layer3.conv2.weight"], state["layer3.conv2.weight"])


@pytest.mark.parametrize(("name", "shape", "message"), [
    ("layer1.conv1.weight", None, r"lacks layer1\.conv1\.weight"),
    ("surprise", (2,), "has the unknown surprise"),
    ("layer1.conv1.weight", (1, 2), r"another shape of layer1\.conv1\.weight"),
])
def test_weights_of_another_model_are_refused_and_change_nothing(tmp_path: Path, name: str,
                                                                shape: tuple[int, ...] | None, message: str) -> None:
    state = dict(small(seed=1).state_dict())
    state.pop(name, None)
    if shape is not None:
        state[name] = torch.zeros(shape)
    model = small(seed=2)
    digest = weights_sha256(model.state_dict())
    with pytest.raises(ConfigError, match=message):
        load_starting_weights(model, saved(tmp_path / "w.safetensors", state))
    assert weights_sha256(model.state_dict()) == digest


class Unpickled:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, ("evidence",)


def test_files_that_are_no_safetensors_are_refused_and_not_unpickled(tmp_path: Path,
                                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "w.pt"
    model = small()
    no_tensor = b'{"a": {}}'
    for content in (pickle.dumps(Unpickled()), b"", b"\0" * 100, b"\xff" * 100, b"{}",
                    len(no_tensor).to_bytes(8, "little") + no_tensor):
        path.write_bytes(content)
        with pytest.raises(ConfigError, match="can not be read") as caught:
            load_starting_weights(model, path)
        assert str(path) in caught.value.fact
    for other in (tmp_path, tmp_path / "none"):
        with pytest.raises(ConfigError, match="can not be read"):
            load_starting_weights(model, other)
    assert not (tmp_path / "evidence").exists()


def test_patterns_freeze_by_name() -> None:
    model = small()
    names = [name for name, _ in model.named_parameters()]
    expected = {name for name in names if name.startswith(("stem.", "layer1."))}
    assert freeze(model, ["stem.*", "layer1.*", "layer1.conv1.weight"]) == len(expected)
    assert {name for name, p in model.named_parameters() if not p.requires_grad} == expected


@pytest.mark.parametrize(("patterns", "message"), [(["layer9.*"], "'layer9.*' matches no parameter"),
                                                   (["stem.*", "Layer1.*"], "'Layer1.*' matches no parameter"),
                                                   (["*"], "matches every parameter"),
                                                   (["stem.*", "layer*", "fc.*"], "matches every parameter")])
def test_patterns_that_make_no_sense_are_refused(patterns: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        freeze(small(), patterns)
    assert message in caught.value.fact


def test_frozen_normalisation_keeps_its_statistics() -> None:
    model = small()
    freeze(model, ["stem.*", "layer1.bn1.weight"])  # layer1.bn1 still trains its bias
    set_training(model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model(torch.randn(4, 3, 16, 16))
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {name for name in before if "running" in name or "num_batches" in name} - {
        "stem.1.running_mean", "stem.1.running_var", "stem.1.num_batches_tracked"}
    model.eval()
    set_training(model)
    assert model.training
    assert not model.stem[1].training  # type: ignore[index,union-attr]
