"""Gradients of lanes to one mean, in a world of one: against plain autograd, and against their own order."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distrib.comm.group import Group
from distrib.config import TrainConfig
from distrib.data.keyed import key_of
from distrib.data.stream import Batch
from distrib.train.build import data_parallel
from distrib.train.exact import scale_bits
from distrib.train.lane import _MODEL_RANDOMNESS, averaged_buffers
from distrib.train.reduction import Reduction, Stop
from distrib.train.reductions import build_reduction
from distrib.train.step import LaneStep, StepResult

LANES, SEED = 4, 5


def small_model() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 1),
                          nn.BatchNorm2d(4), nn.Flatten(), nn.Dropout(0.3), nn.Linear(4 * 36, 3))
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def batches(seed: int = 0) -> list[Batch]:
    rng = np.random.default_rng(seed)
    return [Batch(lane, rng.integers(0, 256, (3, 8, 8, 3), dtype=np.uint8), rng.integers(0, 3, 3), np.arange(3))
            for lane in range(LANES)]


def config(kind: str) -> TrainConfig:
    """``kind`` is a reduction, or a compression of ordinary sums."""
    compressed = {"reduction": "fast", "compress": kind, "powersgd_start": 2, "powersgd_rank": 4}
    wish = compressed if kind in ("bf16", "powersgd") else {"reduction": kind}
    return TrainConfig.model_validate({**wish, "lanes": LANES, "global_batch": LANES})


def prepare(images_NHWC: Tensor) -> Tensor:
    return images_NHWC.permute(0, 3, 1, 2).float() / 128 - 1


class Setup:
    """A model with everything that a step needs."""

    def __init__(self, group: Group, kind: str, model: nn.Module | None = None) -> None:
        self.model = model if model is not None else small_model()
        self.poison: dict[int, float] = {}
        """Loss factor by the number of the lane within a step."""
        self.reduction: Reduction = build_reduction(config(kind), group, self.model, SEED)
        ddp = data_parallel(self.model, compiled=False)
        self.reduction.attach(ddp)
        self.lane_step = LaneStep(self.model, ddp, self.reduction, loss=self.loss, prepare=prepare, autocast=False,
                                  seed=SEED)
        self._lane = 0

    def loss(self, logits_NK: Tensor, labels_N: Tensor) -> Tensor:
        lane, self._lane = self._lane, (self._lane + 1) % LANES
        return F.cross_entropy(logits_NK, labels_N) * self.poison.get(lane, 1.0)

    def run(self, chosen: Sequence[Batch], step: int = 0, stop: Stop = Stop.NO) -> StepResult:
        return self.lane_step.run(step, chosen, stop)

    def gradients(self) -> list[Tensor]:
        return [p.grad.clone() for p in self.model.parameters() if p.grad is not None]

    def buffers(self) -> list[Tensor]:
        return [b.clone() for b in self.model.buffers()]


def lane_by_lane(chosen: Sequence[Batch]) -> tuple[list[list[Tensor]], list[list[Tensor]], list[float]]:
    """(gradients, floating-point buffers, loss) of each lane by plain autograd, each from the same start."""
    gradients, statistics, losses = [], [], []
    for batch in chosen:
        model = small_model()
        torch.manual_seed(key_of(_MODEL_RANDOMNESS, SEED, 0, batch.lane) >> 1)  # dropout draws as in the lane
        loss = F.cross_entropy(model(prepare(torch.from_numpy(batch.images_NHWC))), torch.from_numpy(batch.labels_N))
        loss.backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
        statistics.append([b.clone() for b in averaged_buffers(model)])
        losses.append(float(loss.detach()))
    return gradients, statistics, losses


@pytest.mark.parametrize("kind", ["exact", "exact16", "exact10", "fast"])
def test_gradients_are_the_mean_over_all_lanes(group: Group, kind: str) -> None:
    setup = Setup(group, kind)
    gradients, statistics, losses = lane_by_lane(batches())
    for _ in range(3):  # DDP rearranges its buckets after the first step
        setup.model.load_state_dict(small_model().state_dict())
        result = setup.run(batches())
        assert result.finite
        assert result.loss == pytest.approx(np.mean(losses), rel=1e-6)
        for got, lanes in zip(setup.gradients(), zip(*gradients, strict=True), strict=True):
            true = torch.stack(list(lanes)).double().mean(0)
            peak = max(float(lane.abs().max()) for lane in lanes)
            grid = 2.0 ** (math.frexp(peak)[1] + 2 - scale_bits(LANES, 32))
            # With few bits the margin is 1, and rounding may be off by a whole unit.
            error = {"exact": 0.5, "exact16": 2**15, "exact10": 2**21, "fast": 0.0}[kind] * grid
            assert ((got.double() - true).abs() <= error + 3e-7 * peak).all()
        for buffer, lanes in zip(averaged_buffers(setup.model), zip(*statistics, strict=True), strict=True):
            torch.testing.assert_close(buffer, torch.stack(list(lanes)).mean(0), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("kind", ["exact", "exact16", "exact10"])
def test_exact_sums_do_not_depend_on_the_order_of_lanes(group: Group, kind: str) -> None:
    results = []
    for order in ([0, 1, 2, 3], [3, 2, 1, 0], [2, 0, 3, 1]):
        setup = Setup(group, kind)
        for step in range(3):
            chosen = batches(step)
            result = setup.run([chosen[lane] for lane in order], step)
            with torch.no_grad():
                for parameter in setup.model.parameters():
                    assert parameter.grad is not None
                    parameter.sub_(0.1 * parameter.grad)
        results.append((result.loss, result.accuracy, setup.gradients(), setup.buffers(), setup.reduction.state()))
    for loss, accuracy, gradients, buffers, state in results[1:]:
        assert (loss, accuracy, state) == (results[0][0], results[0][1], results[0][4])
        for mine, theirs in ((gradients, results[0][2]), (buffers, results[0][3])):
            assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))


def test_ordinary_sums_do_depend_on_it(group: Group) -> None:
    # Shows that the test above can fail.
    gradients = []
    for order in ([0, 1, 2, 3], [3, 2, 1, 0], [2, 0, 3, 1]):
        setup = Setup(group, "fast")
        setup.run([batches()[lane] for lane in order])
        gradients.append(torch.cat([g.flatten() for g in setup.gradients()]))
    assert not all(torch.equal(gradients[0], other) for other in gradients[1:])


@pytest.mark.parametrize("kind", ["exact", "exact16", "exact10"])
def test_a_repeated_step_ends_like_one_with_the_right_exponents_from_the_start(group: Group, kind: str) -> None:
    setup = Setup(group, kind)
    first = setup.run(batches())
    assert first.repeats == 1  # nothing was known of the magnitudes
    right = copy.deepcopy(setup.reduction.state())
    reference = Setup(group, kind)
    reference.reduction.load_state(copy.deepcopy(right))
    assert reference.run(batches()).repeats == 0
    expected = reference.gradients(), reference.buffers()
    for key, number in (("gradients", 0), ("gradients", 7), ("statistics", 1), ("statistics", 4)):
        state = copy.deepcopy(right)
        state[key][number] -= 12  # one tensor's magnitudes grew beyond what was promised
        other = Setup(group, kind)
        other.reduction.load_state(state)
        result = other.run(batches())
        assert result.repeats == 1
        assert result.loss == first.loss
        for mine, theirs in zip((other.gradients(), other.buffers()), expected, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))
    for mine, theirs in zip((setup.gradients(), setup.buffers()), expected, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))


def test_state_survives_json_and_carries_the_exponents(group: Group) -> None:
    setup = Setup(group, "exact")
    setup.run(batches())
    other = Setup(group, "exact")
    other.reduction.load_state(json.loads(json.dumps(setup.reduction.state())))
    assert other.reduction.state() == setup.reduction.state()
    fast = Setup(group, "fast")
    fast.reduction.load_state(json.loads(json.dumps(fast.reduction.state())))


@pytest.mark.parametrize("kind", ["exact", "exact16", "exact10", "fast"])
@pytest.mark.parametrize("lane", [0, LANES - 1])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_seen_whichever_lane_it_is_in(group: Group, kind: str, lane: int, value: float) -> None:
    setup = Setup(group, kind)
    before = [p.detach().clone() for p in setup.model.parameters()]
    assert setup.run(batches()).finite
    setup.poison = {lane: value}
    result = setup.run(batches())
    assert not result.finite
    assert result.repeats == 0
    assert all(torch.equal(a, b) for a, b in zip(before, setup.model.parameters(), strict=True))


@pytest.mark.parametrize(("kind", "error"), [("bf16", 2.0**-7), ("powersgd", 0.6)])
def test_compressed_gradients_are_near_the_mean_and_their_errors_come_later(group: Group, kind: str,
                                                                          error: float) -> None:
    setup, plain = Setup(group, kind), Setup(group, "fast")
    plain.run(batches())
    sums = [torch.zeros_like(gradient) for gradient in plain.gradients()]
    for step in range(42):
        setup.model.load_state_dict(small_model().state_dict())
        assert setup.run(batches()).finite
        if step >= 2:
            for total, got, true in zip(sums, setup.gradients(), plain.gradients(), strict=True):
                total += got
                assert (got - true).norm() <= error * true.norm() + 1e-7
    for total, true in zip(sums, plain.gradients(), strict=True):  # PowerSGD sends what it held back
        assert (total / 40 - true).norm() <= 0.1 * true.norm() + 1e-7


@pytest.mark.parametrize(("kind", "bits"), [("exact16", 16), ("exact10", 10)])
def test_rounding_to_few_bits_draws_anew_each_step_and_has_no_bias(group: Group, kind: str, bits: int) -> None:
    sums, steps = [torch.zeros_like(p) for p in small_model().parameters()], 200
    setup = Setup(group, kind)
    setup.model[6].p = 0.0  # type: ignore[index]
    exact = Setup(group, "exact")
    exact.model[6].p = 0.0  # type: ignore[index]
    exact.run(batches())
    first: list[Tensor] = []
    for step in range(steps):
        setup.run(batches(), step)
        setup.model.load_state_dict(small_model().state_dict())
        first = first or setup.gradients()
        for total, gradient in zip(sums, setup.gradients(), strict=True):
            total += gradient
    assert not all(torch.equal(a, b) for a, b in zip(first, setup.gradients(), strict=True))
    for total, true in zip(sums, exact.gradients(), strict=True):
        unit = 2.0 ** (math.frexp(float(true.abs().max()))[1] + 3 - scale_bits(LANES, bits))
        assert (total / steps - true).abs().max() < unit * 4.5 / (LANES * steps) ** 0.5


def test_gradients_beyond_every_exponent_count_as_diverged(group: Group) -> None:
    setup = Setup(group, "exact")
    assert setup.run(batches()).finite
    setup.poison = {1: 1e33}  # finite, and so is every gradient
    result = setup.run(batches())
    assert not result.finite
    setup.poison = {1: 1e15}  # much, but within reach
    result = setup.run(batches())
    assert result.finite
    assert result.repeats >= 1


@pytest.mark.parametrize("kind", ["exact", "exact16", "exact10", "fast"])
@pytest.mark.parametrize("stop", [Stop.NO, Stop.END])
def test_a_wish_to_stop_travels_with_the_step(group: Group, kind: str, stop: Stop) -> None:
    assert Setup(group, kind).run(batches(), stop=stop).stop is stop


def test_frozen_parameters_get_no_gradient(group: Group) -> None:
    model = small_model()
    model[0].weight.requires_grad_(False)  # type: ignore[index]
    setup = Setup(group, "exact", model)
    assert setup.run(batches()).finite
    assert [name for name, p in model.named_parameters() if p.grad is None] == ["0.weight"]
    gradients, _, _ = lane_by_lane(batches())
    for got, lanes in zip(setup.gradients(), list(zip(*gradients, strict=True))[1:], strict=True):
        torch.testing.assert_close(got, torch.stack(list(lanes)).mean(0), rtol=1e-5, atol=1e-6)


def test_gradients_in_another_memory_format_are_added_at_their_places(group: Group) -> None:
    plain, turned = Setup(group, "exact"), Setup(group, "exact")
    plain.run(batches())

    def turn(parameter: Tensor) -> None:
        assert parameter.grad is not None
        if turned._lane != 0:  # the last lane's gradients are DDP's
            parameter.grad = parameter.grad.contiguous()

    convolution = turned.model[0].weight  # type: ignore[index]
    convolution.register_post_accumulate_grad_hook(turn)
    turned.run(batches())
    assert convolution.stride() != convolution.detach().contiguous().stride()
    assert all(torch.equal(a, b) for a, b in zip(plain.gradients(), turned.gradients(), strict=True))


class Idle(nn.Module):
    """Has a parameter that its output does not depend on."""

    def __init__(self) -> None:
        super().__init__()
        self.used = nn.Linear(192, 3)
        self.idle = nn.Parameter(torch.ones(2))

    def forward(self, images_NCHW: Tensor) -> Tensor:
        logits_NK: Tensor = self.used(images_NCHW.flatten(1))
        return logits_NK


def test_a_parameter_that_is_not_used_is_named(group: Group) -> None:
    with pytest.raises(RuntimeError, match=r"parameter 0 of shape \(2,\) got no gradient"):
        Setup(group, "exact", Idle()).run(batches())
