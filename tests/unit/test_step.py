"""One step of several lanes: buffers, counters, randomness."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distrib.comm.group import Group
from distrib.config import TrainConfig
from distrib.data.stream import Batch
from distrib.models.weights import freeze, set_training
from distrib.train.build import data_parallel
from distrib.train.reduction import Stop
from distrib.train.reductions import build_reduction
from distrib.train.step import LaneStep, StepResult

LANES = 3


def config(kind: str) -> TrainConfig:
    return TrainConfig.model_validate({"reduction": kind, "lanes": LANES, "global_batch": LANES})


def prepare(images_NHWC: Tensor) -> Tensor:
    return images_NHWC.permute(0, 3, 1, 2).float() / 255


def batches(seed: int = 0, lanes: Sequence[int] = range(LANES)) -> list[Batch]:
    made = []
    for lane in lanes:
        rng = np.random.default_rng([seed, lane])
        images_NHWC = rng.integers(0, 256, (5, 4, 4, 3), dtype=np.uint8)
        made.append(Batch(lane, images_NHWC, rng.integers(0, 3, 5), np.arange(5)))
    return made


class Noted(nn.Module):
    """Batch norm and dropout; notes the masks that dropout drew and the logits."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.bn = nn.BatchNorm2d(3)
        self.dropout = nn.Dropout(0.5)
        self.fc = nn.Linear(48, 3)
        self.masks: list[Tensor] = []
        self.logits: list[Tensor] = []

    def forward(self, images_NCHW: Tensor) -> Tensor:
        x = self.bn(images_NCHW).flatten(1)
        self.masks.append(self.dropout(torch.ones_like(x)).detach())
        logits_NK: Tensor = self.fc(x * self.masks[-1])
        self.logits.append(logits_NK.detach())
        return logits_NK


def step_of(group: Group, model: nn.Module, kind: str = "exact", seed: int = 9, autocast: bool = False) -> LaneStep:
    reduction = build_reduction(config(kind), group, model, seed)
    ddp = data_parallel(model, compiled=False)
    reduction.attach(ddp)
    return LaneStep(model, ddp, reduction, loss=F.cross_entropy, prepare=prepare, autocast=autocast, seed=seed)


@pytest.mark.parametrize("kind", ["exact", "fast"])
def test_statistics_become_the_mean_of_what_each_lane_makes_of_the_same_start(group: Group, kind: str) -> None:
    model = Noted()
    run = step_of(group, model, kind)
    expected_mean, expected_var = torch.zeros(3), torch.ones(3)
    for step in range(3):
        chosen = batches(step)
        images = [prepare(torch.from_numpy(batch.images_NHWC)) for batch in chosen]
        expected_mean = 0.9 * expected_mean + 0.1 * torch.stack([x.mean((0, 2, 3)) for x in images]).mean(0)
        expected_var = 0.9 * expected_var + 0.1 * torch.stack(
            [x.transpose(0, 1).reshape(3, -1).var(1) for x in images]).mean(0)
        run.run(step, chosen, Stop.NO)
        torch.testing.assert_close(model.bn.running_mean, expected_mean)
        torch.testing.assert_close(model.bn.running_var, expected_var)
        assert int(model.bn.num_batches_tracked or 0) == step + 1  # one a step, however many lanes and repeats


def test_loss_and_accuracy_are_those_of_all_lanes(group: Group) -> None:
    model = Noted()
    result = step_of(group, model).run(0, batches(), Stop.NO)
    logits_NK = torch.cat(model.logits[-LANES:])  # of the last attempt
    labels_N = torch.cat([torch.from_numpy(batch.labels_N) for batch in batches()])
    assert len(model.logits) == LANES * (1 + result.repeats)
    assert result.loss == pytest.approx(float(F.cross_entropy(logits_NK, labels_N)), rel=1e-6)
    assert result.accuracy == pytest.approx(float((logits_NK.argmax(1) == labels_N).float().mean()))


def masks(group: Group, step: int, seed: int = 9, lanes: Sequence[int] = range(LANES)) -> dict[int, Tensor]:
    """Dropout's mask of each lane, after checking that every attempt drew the same."""
    model = Noted()
    torch.manual_seed(12345 + step)  # whatever was drawn before
    result = step_of(group, model, seed=seed).run(step, batches(lanes=lanes), Stop.NO)
    assert result.repeats == 1
    first, second = model.masks[:LANES], model.masks[LANES:]
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    return dict(zip(lanes, first, strict=True))


def test_dropout_is_a_function_of_seed_step_and_lane(group: Group) -> None:
    here = masks(group, 4)
    again = masks(group, 4, lanes=[2, 0, 1])
    for lane in range(LANES):
        assert torch.equal(here[lane], again[lane])
    drawn = [*here.values(), *masks(group, 5).values(), *masks(group, 4, seed=10).values()]
    assert len({mask.numpy().tobytes() for mask in drawn}) == 3 * LANES


def test_no_parameter_moves_and_gradients_are_those_of_the_last_run_alone(group: Group) -> None:
    model = Noted()
    run = step_of(group, model)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    run.run(0, batches(), Stop.NO)
    first = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.load_state_dict(start)
    run.run(0, batches(), Stop.NO)
    second = [p.grad for p in model.parameters() if p.grad is not None]
    assert len(first) == len(before)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())


@pytest.mark.parametrize("peak", [1.0, 1e20])
def test_frozen_statistics_stay_to_the_last_bit(group: Group, peak: float) -> None:
    # A channel that was dead in the weights that training starts from has a variance of next to nothing.
    model = Noted()
    freeze(model, ["bn.*"])
    set_training(model)
    model.bn.running_var = torch.tensor([peak, 0.1, 3e-23])
    model.bn.running_mean = torch.tensor([0.1, -1e-30, 0.0])
    before = [b.clone() for b in model.buffers()]
    step_of(group, model).run(0, batches(), Stop.NO)
    assert all(torch.equal(a, b) for a, b in zip(before, model.buffers(), strict=True))


def results(group: Group, autocast: bool) -> tuple[StepResult, Noted]:
    model = Noted()
    return step_of(group, model, autocast=autocast).run(0, batches(), Stop.NO), model


def test_autocast_computes_in_bfloat16_and_keeps_gradients_and_loss_in_float32(group: Group) -> None:
    single, plain = results(group, False)
    mixed, cast = results(group, True)
    assert [logits.dtype for logits in (plain.logits[0], cast.logits[0])] == [torch.float32, torch.bfloat16]
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in cast.parameters())
    assert mixed.loss == pytest.approx(single.loss, rel=0.02)
    assert mixed.loss != single.loss
