"""A round of local steps against a plain loop over lanes, and against the order in which lanes run."""

from __future__ import annotations

import copy
import math
from collections import deque
from collections.abc import Sequence

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distrib.comm.group import Group
from distrib.config import TrainConfig
from distrib.data.order import reading_plan
from distrib.data.stream import Batch
from distrib.train.fixed_point import FixedPoint
from distrib.train.lane import LanePass
from distrib.train.local_round import LocalRounds
from distrib.train.optimise import build_optimizer, build_outer_optimizer, set_learning_rate
from distrib.train.outer_sum import OuterSum
from distrib.train.packed import PackedFixedPoint
from distrib.train.reduction import Stop

LANES, ROUND, STEPS = 4, 3, 8
TRAIN = TrainConfig(lanes=LANES, global_batch=5 * LANES, optimizer="adamw", local_steps=ROUND, outer_lr=0.6)


def small_model() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 5, 3, bias=False), nn.BatchNorm2d(5), nn.ReLU(), nn.Flatten(),
                          nn.Linear(5 * 36, 3))
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def batch_of(step: int, lane: int) -> Batch:
    rng = np.random.default_rng([step, lane])
    return Batch(lane, rng.integers(0, 256, (5, 8, 8, 3), dtype=np.uint8), rng.integers(0, 3, 5), np.arange(5))


def prepare(images_NHWC: Tensor) -> Tensor:
    return images_NHWC.permute(0, 3, 1, 2).float() / 128 - 1


def rate(step: int) -> float:
    return 0.01 / (step + 1)


class Takes:
    """Stands in for a stream."""

    def __init__(self, lanes: Sequence[int], first_step: int = 0) -> None:
        self.plan = deque(reading_plan(lanes, first_step, STEPS, ROUND))

    def take(self) -> list[Batch]:
        return [batch_of(step, lane) for step, lane in self.plan.popleft()]


class Rounds:
    def __init__(self, group: Group, lanes: Sequence[int], words: FixedPoint, model: nn.Module | None = None,
                 first_step: int = 0) -> None:
        self.model = model if model is not None else small_model()
        self.poison: float | None = None
        self.outer = build_outer_optimizer(self.model, TRAIN)
        sizes = [p.numel() for p in self.model.parameters() if p.requires_grad]
        self.seen: list[tuple[int, int]] = []
        self.pace = LocalRounds(
            self.model, self.outer, group, OuterSum(group, sizes, LANES, words),
            LanePass(self.model, loss=self.loss, prepare=prepare, autocast=False, seed=1),
            Takes(lanes, first_step), lanes=lanes, num_lanes=LANES, local_steps=ROUND,  # type: ignore[arg-type]
            total_steps=STEPS, seed=1, inner=lambda: build_optimizer(self.model, TRAIN), rate=rate, clip_norm=1.0,
            witness=lambda step, batches: self.seen.extend((step, batch.lane) for batch in batches),
        )

    def loss(self, logits_NK: Tensor, labels_N: Tensor) -> Tensor:
        loss = F.cross_entropy(logits_NK, labels_N)
        return loss * self.poison if self.poison is not None and len(self.seen) == ROUND + 1 else loss

    def state(self) -> list[Tensor]:
        return [tensor.clone() for tensor in self.model.state_dict().values()]


def reference(rounds: int) -> tuple[nn.Module, list[float]]:
    """The same in plain float64 sums."""
    model, losses = small_model(), list[float]()
    momentum = [torch.zeros_like(p, dtype=torch.float64) for p in model.parameters()]
    for number in range(rounds):
        steps = range(number * ROUND, min((number + 1) * ROUND, STEPS))
        lanes: list[nn.Module] = []
        lane_losses: list[list[float]] = []
        for lane in range(LANES):
            replica = copy.deepcopy(model)
            optimizer = build_optimizer(replica, TRAIN)
            lane_losses.append([])
            for step in steps:
                batch = batch_of(step, lane)
                optimizer.zero_grad()
                loss = F.cross_entropy(replica(prepare(torch.from_numpy(batch.images_NHWC))),
                                       torch.from_numpy(batch.labels_N))
                loss.backward()
                torch.nn.utils.clip_grad_norm_(replica.parameters(), 1.0)
                set_learning_rate(optimizer, rate(step))
                optimizer.step()
                lane_losses[-1].append(float(loss.detach()))
            lanes.append(replica)
        losses += np.mean(lane_losses, axis=0).tolist()
        with torch.no_grad():
            for buffer, *others in zip(model.buffers(), *(lane.buffers() for lane in lanes), strict=True):
                buffer.copy_(torch.stack([other.double() for other in others]).mean(0))
            for i, (p, *others) in enumerate(zip(model.parameters(), *(r.parameters() for r in lanes), strict=True)):
                move = torch.stack([p.double() - other.double() for other in others]).mean(0)
                momentum[i] = 0.9 * momentum[i] + move
                p.copy_(p.double() - 0.6 * (move + 0.9 * momentum[i]))
    return model, losses


@pytest.mark.parametrize(("words", "tolerance"), [(FixedPoint(), 2e-6), (PackedFixedPoint(), 2e-4)])
def test_rounds_are_those_of_a_plain_loop(group: Group, words: FixedPoint, tolerance: float) -> None:
    rounds = Rounds(group, range(LANES), words)
    step, losses = 0, []
    for number in range(3):  # the last one is shorter
        period = rounds.pace.run(step, stop=Stop(2 * (number == 1)))
        assert (period.diverged, period.stop, period.repeats) == (None, Stop(2 * (number == 1)), 0)
        assert [one.rate for one in period.steps] == [rate(s) for s in range(step, step + len(period.steps))]
        losses += [one.loss for one in period.steps]
        step += len(period.steps)
        model, expected = reference(number + 1)
        torch.testing.assert_close(losses, expected, rtol=tolerance * 100, atol=tolerance)
        for mine, theirs in zip(rounds.state(), model.state_dict().values(), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=20 * tolerance)
    assert step == STEPS
    assert len(rounds.seen) == len(set(rounds.seen)) == STEPS * LANES


@pytest.mark.parametrize("words", [FixedPoint(), PackedFixedPoint(), PackedFixedPoint(fields=3)])
def test_the_order_of_lanes_changes_no_bit(group: Group, words: FixedPoint) -> None:
    found = []
    for lanes in ([0, 1, 2, 3], [3, 1, 0, 2]):
        rounds = Rounds(group, lanes, words)
        steps = [one for step in (0, 3, 6) for one in rounds.pace.run(step, stop=Stop.NO).steps]
        found.append((rounds.state(), steps))
    assert found[0][1] == found[1][1]
    assert all(torch.equal(a, b) for a, b in zip(found[0][0], found[1][0], strict=True))


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e33])
def test_the_step_that_diverged_is_named_and_nothing_moves(group: Group, value: float) -> None:
    rounds = Rounds(group, range(LANES), FixedPoint())
    rounds.poison = value
    before = [p.detach().clone() for p in rounds.model.parameters()]
    # The first lane has run when the second lane's second step goes wrong.
    assert rounds.pace.run(0, stop=Stop.NO).diverged == 2
    assert all(torch.equal(a, b) for a, b in zip(before, rounds.model.parameters(), strict=True))


def test_frozen_parameters_stay(group: Group) -> None:
    model = small_model()
    model[0].weight.requires_grad_(False)  # type: ignore[index]
    rounds = Rounds(group, range(LANES), FixedPoint(), model)
    before = [p.detach().clone() for p in model.parameters()]
    assert rounds.pace.run(0, stop=Stop.NO).diverged is None
    same = [torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)]
    assert same == [True, *[False] * (len(same) - 1)]
