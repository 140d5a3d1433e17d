from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distrib.config import TrainConfig
from distrib.errors import CheckpointError, ConfigError
from distrib.train.optimise import (
    MovingAverage,
    build_optimizer,
    class_weights,
    lane_loss,
    learning_rate,
    load_optimizer_tensors,
    optimizer_tensors,
    set_learning_rate,
)


def config(**changes: Any) -> TrainConfig:
    return TrainConfig.model_validate({"lr": 0.4, **changes})


def test_the_rate_warms_up_linearly_and_falls_as_half_a_cosine() -> None:
    cosine = config(warmup_epochs=2)
    rates = [learning_rate(cosine, step, 20, 2.5) for step in range(20)]  # 5 steps of warm-up
    assert rates[:6] == pytest.approx([0.4 * n / 6 for n in range(1, 7)])
    assert rates[5] == 0.4
    assert rates[5:] == pytest.approx([0.2 * (1 + math.cos(math.pi * n / 15)) for n in range(15)])
    # Half the way down after half the steps, and not yet at nothing in the last one.
    assert learning_rate(config(), 10, 20, 5) == pytest.approx(0.2)
    assert 0 < learning_rate(config(), 19, 20, 5) < 0.01


def test_a_constant_rate_and_the_shortest_runs() -> None:
    constant = config(schedule="constant", warmup_epochs=1)
    assert [learning_rate(constant, step, 9, 3) for step in range(2, 9)] == pytest.approx([0.3] + [0.4] * 6)
    assert learning_rate(config(), 0, 1, 0.5) == 0.4
    # A warm-up longer than the run ends with it.
    rates = [learning_rate(config(warmup_epochs=100), step, 4, 3) for step in range(4)]
    assert rates == pytest.approx([0.1, 0.2, 0.3, 0.4])


def test_class_weights() -> None:
    assert class_weights(config(), np.array([1, 3])) is None
    counts = np.array([10, 30, 60])
    balanced = class_weights(config(class_weights="balanced"), counts)
    assert balanced is not None
    assert balanced.dtype == torch.float32
    assert balanced.tolist() == pytest.approx([100 / 30, 100 / 90, 100 / 180])
    assert float((balanced * torch.from_numpy(counts)).sum()) / 100 == pytest.approx(1)
    given = class_weights(config(class_weights=[1, 2, 3]), counts)
    assert given is not None
    assert given.tolist() == [1, 2, 3]
    with pytest.raises(ConfigError, match="a class has no training sample"):
        class_weights(config(class_weights="balanced"), np.array([10, 0]))
    with pytest.raises(ConfigError, match="2 numbers for 3 classes"):
        class_weights(config(class_weights=[1, 2]), counts)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", [None, [0.2, 1.0, 5.0]])
def test_the_mean_over_lanes_is_the_loss_of_the_whole_batch(smoothing: float, weights: list[float] | None) -> None:
    generator = torch.Generator().manual_seed(0)
    logits_NK = torch.randn(24, 3, generator=generator, dtype=torch.float64)
    labels_N = torch.randint(0, 3, (24,), generator=generator)
    weights_K = None if weights is None else torch.tensor(weights, dtype=torch.float64)
    loss = lane_loss(config(label_smoothing=smoothing), weights_K)
    whole = loss(logits_NK, labels_N)
    # torch's own mean over a weighted batch divides by its weights, which differ from lane to lane.
    total = F.cross_entropy(logits_NK, labels_N, weights_K, reduction="sum", label_smoothing=smoothing)
    assert float(whole) == pytest.approx(float(total) / 24)
    for lanes in (1, 2, 8, 24):
        parts = [loss(x, y) for x, y in zip(logits_NK.chunk(lanes), labels_N.chunk(lanes), strict=True)]
        assert float(sum(parts)) / lanes == pytest.approx(float(whole))


def small_model() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 3))
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def set_gradients(model: nn.Module, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for parameter in model.parameters():
        parameter.grad = torch.empty_like(parameter).copy_(torch.randn(parameter.shape, generator=generator))


@pytest.mark.parametrize("changes", [{"optimizer": "sgd"}, {"optimizer": "sgd", "momentum": 0.0},
                                     {"optimizer": "adamw", "lr": 0.01, "weight_decay": 0.1}])
def test_training_goes_on_from_saved_state_bit_for_bit(changes: dict[str, Any]) -> None:
    whole, resumed = small_model(), small_model()
    optimizer = build_optimizer(whole, config(**changes))
    for step in range(3):
        set_gradients(whole, step)
        set_learning_rate(optimizer, 0.1 / (step + 1))
        optimizer.step()
    # What a file does to tensors: row-major bytes, whatever their memory format was.
    saved = {name: tensor.contiguous().clone() for name, tensor in optimizer_tensors(whole, optimizer).items()}
    resumed.load_state_dict({name: tensor.contiguous().clone() for name, tensor in whole.state_dict().items()})
    second = build_optimizer(resumed, config(**changes))
    load_optimizer_tensors(resumed, second, saved)
    again = optimizer_tensors(resumed, second)
    assert again.keys() == saved.keys()
    assert all(torch.equal(again[name], saved[name]) and again[name].dtype == saved[name].dtype for name in saved)
    for name, parameter in resumed.named_parameters():
        for state, tensor in again.items():
            if state.startswith(f"{name}/") and tensor.shape == parameter.shape:
                assert tensor.stride() == parameter.stride()
    for step in range(3, 7):
        for model, chosen in ((whole, optimizer), (resumed, second)):
            set_gradients(model, step)
            set_learning_rate(chosen, 0.1 / (step + 1))
            chosen.step()
    before = small_model().state_dict()
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name
        if "running" not in name and "num_batches" not in name:
            assert not torch.equal(tensor, before[name])
    if changes.get("momentum") != 0.0:  # the state matters: without it training would have gone elsewhere
        assert len(saved) == sum(1 for _ in whole.parameters()) * (3 if changes["optimizer"] == "adamw" else 1)


def test_state_of_another_model_is_refused() -> None:
    model = small_model()
    optimizer = build_optimizer(model, config())
    with pytest.raises(CheckpointError, match=r"names 'other\.weight'"):
        load_optimizer_tensors(model, optimizer, {"other.weight/momentum_buffer": torch.zeros(1)})


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_biases_and_normalisation_do_not_decay_and_frozen_parts_do_not_move(optimizer: str) -> None:
    model = small_model()
    model[3].weight.requires_grad_(False)  # type: ignore[index]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    chosen = build_optimizer(model, config(optimizer=optimizer, lr=0.5, weight_decay=0.1))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    chosen.step()
    for name, parameter in model.named_parameters():
        decayed = name == "0.weight"
        expected = before[name] * (1 - 0.5 * 0.1) if decayed else before[name]
        torch.testing.assert_close(parameter.detach(), expected, rtol=1e-6, atol=0)


def test_wholly_frozen_but_for_a_bias_still_has_an_optimiser() -> None:
    model = nn.Linear(2, 2)
    model.weight.requires_grad_(False)
    [group] = build_optimizer(model, config()).param_groups
    assert group["params"] == [model.bias]
    assert group["weight_decay"] == 0


class Counted(nn.Module):
    """A weight that is set from outside, and a counter."""

    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0, -2.0]))
        self.register_buffer("count", torch.tensor(0))


def test_the_moving_average_follows_its_formula() -> None:
    model = Counted()
    average = MovingAverage(model, 0.75)
    expected = np.array([1.0, -2.0])
    for step in range(1, 40):
        with torch.no_grad():
            model.weight.copy_(torch.tensor([math.sin(step), float(step)]))
        model.count += 1
        average.update(step)
        decay = min(0.75, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * np.array([math.sin(step), step])
        assert average.tensors["weight"].tolist() == pytest.approx(expected.tolist(), rel=1e-5)
        assert int(average.tensors["count"]) == step  # what counts is not averaged
    assert not average.tensors["weight"].requires_grad
    assert model.weight.tolist() == pytest.approx([math.sin(39), 39.0])  # and the model is left alone


def test_a_saved_moving_average_goes_on_bit_for_bit() -> None:
    model = Counted()
    one = MovingAverage(model, 0.9)
    with torch.no_grad():
        model.weight.add_(0.3)
    one.update(1)
    other = MovingAverage(model, 0.9)
    other.load({name: tensor.clone() for name, tensor in one.tensors.items()})
    with torch.no_grad():
        model.weight.mul_(1.7)
    for average in (one, other):
        average.update(2)
    assert torch.equal(one.tensors["weight"], other.tensors["weight"])
