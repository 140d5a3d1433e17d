"""One rank of ddp_step.py: `python ddp_rank.py JOB`, JOB a JSON object; prints {variant: [seconds of each round]}.

All variants live in this process and take turns; the world is over oneCCL, and a group over gloo stands beside it.
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from timing import note
from torch import Tensor, nn
from torch._C._distributed_c10d import GradBucket
from torch.nn.parallel import DistributedDataParallel

from distrib.comm.group import Group
from distrib.config import Experiment
from distrib.data.order import carried_lanes
from distrib.data.stream import Batch
from distrib.models.normalise import Normalise
from distrib.train.build import data_parallel, starting_model
from distrib.train.lane import LanePass
from distrib.train.local_round import LocalRounds
from distrib.train.optimise import build_optimizer, build_outer_optimizer, lane_loss
from distrib.train.outer_sum import OuterSum
from distrib.train.reduction import Stop
from distrib.train.reductions import build_reduction, build_words
from distrib.train.step import LaneStep
from distrib.world import read_world

Step = Callable[[], object]
WARM_BATCH = 2
"""Images of the steps that find exponents and arrange DDP's buckets; these do not count."""


def bf16_sum(process_group: Any, bucket: GradBucket) -> torch.futures.Future[Tensor]:
    """What torch's bf16_compress_hook does, which refuses any backend but NCCL."""
    buffer = bucket.buffer()
    small = buffer.to(torch.bfloat16)
    sent: Any = dist.all_reduce(small, group=process_group, async_op=True)
    future: torch.futures.Future[Tensor] = sent.get_future().then(
        lambda done: buffer.copy_(done.value()[0]).div_(dist.get_world_size(process_group)))
    return future


class Bench:
    """Builds variants of one model's training step. ``batch``: images a lane, ``side``: their height and width."""

    def __init__(self, group: Group, gloo: Any, model: str, batch: int, side: int, bucket_mb: float,
                 bf16: bool) -> None:
        self.group, self.gloo, self.name, self.bucket_mb, self.bf16 = group, gloo, model, bucket_mb, bf16
        rng = np.random.default_rng(group.rank)
        self.images_NHWC = rng.integers(0, 256, (batch, side, side, 3), dtype=np.uint8)
        self.labels_N = rng.integers(0, 10, batch)
        self.batch = WARM_BATCH

    def lane(self, lane: int) -> Batch:
        n = self.batch
        return Batch(lane=lane, samples_N=np.arange(n), labels_N=self.labels_N[:n], images_NHWC=self.images_NHWC[:n])

    def parts(self, lanes: int, reduction: str, local_steps: int = 1) -> tuple[Experiment, nn.Module, dict[str, Any]]:
        experiment = Experiment.model_validate({
            "data": {"dataset": "none"}, "model": {"name": self.name},
            "train": {"global_batch": lanes, "lanes": lanes, "lr": 1e-3, "reduction": reduction, "steps": 1_000_000,
                      "local_steps": local_steps}})
        model = starting_model(experiment, 10, note).train()
        return experiment, model, {"loss": lane_loss(experiment.train, None), "autocast": self.bf16, "seed": 0,
                                   "prepare": Normalise(experiment.data.mean, experiment.data.std)}

    def stock(self, lanes: int, process_group: Any, *, compress: bool) -> Step:
        """DDP as it comes; alone, without it, if there is no group. Lanes before the last under no_sync."""
        experiment, model, forward = self.parts(lanes, "exact")
        net: Any = model if process_group is None else DistributedDataParallel(
            model, process_group=process_group, bucket_cap_mb=self.bucket_mb, gradient_as_bucket_view=True)
        if compress:
            net.register_comm_hook(None, lambda _, bucket: bf16_sum(process_group, bucket))  # annotations are strings
        optimizer, one_lane = build_optimizer(model, experiment.train), LanePass(net, **forward)

        def step() -> None:
            optimizer.zero_grad(set_to_none=True)
            for lane in range(lanes):
                if process_group is not None:
                    net.require_backward_grad_sync = lane == lanes - 1
                one_lane.run(0, self.lane(lane))[0].backward()
            optimizer.step()

        return step

    def ours(self, lanes: int, reduction: str) -> Step:
        """Lanes summed exactly; ``lanes`` of each rank."""
        experiment, model, forward = self.parts(lanes * self.group.size, reduction)
        way = build_reduction(experiment.train, self.group, model, 0)
        ddp = data_parallel(model, compiled=False)
        way.attach(ddp)
        lane_step, optimizer = LaneStep(model, ddp, way, **forward), build_optimizer(model, experiment.train)
        mine = carried_lanes(self.group.rank, self.group.size, lanes * self.group.size)
        done = 0

        def step() -> None:
            nonlocal done
            lane_step.run(done, [self.lane(lane) for lane in mine], stop=Stop.NO)
            optimizer.step()
            done += 1

        return step

    def local(self, steps: int, lanes_each: int, reduction: str) -> Step:
        """A whole round of local steps of ``lanes_each`` lanes of each rank, and its outer step."""
        lanes = lanes_each * self.group.size
        mine = carried_lanes(self.group.rank, self.group.size, lanes)
        experiment, model, forward = self.parts(lanes, reduction, steps)
        optimizer = build_outer_optimizer(model, experiment.train)
        sizes = [p.numel() for p in model.parameters()]
        stream = (self.lane(lane) for _ in itertools.count() for lane in mine for _ in range(steps))

        class Endless:
            def take(self) -> list[Batch]:
                return [next(stream)]

        rounds = LocalRounds(
            model, optimizer, self.group, OuterSum(self.group, sizes, lanes, build_words(experiment.train)),
            LanePass(model, **forward), Endless(), lanes=mine,  # type: ignore[arg-type]
            num_lanes=lanes, local_steps=steps, total_steps=1_000_000, seed=0,
            inner=lambda: build_optimizer(model, experiment.train), rate=lambda _: 1e-3, clip_norm=None)
        done = 0

        def step() -> None:
            nonlocal done
            rounds.run(done, stop=Stop.NO)
            done += steps

        return step

    def variant(self, name: str) -> Step:
        """alone LANES | stock-gloo | stock-oneccl | stock-gloo-bf16 | exact LANES | exact16 ... | local STEPS LANES."""
        kind, *numbers = name.split()
        count, lanes = (*map(int, numbers), 1, 1)[:2]
        if kind == "alone":
            return self.stock(count, None, compress=False)
        if kind.startswith("stock"):
            return self.stock(count, dist.group.WORLD if "oneccl" in kind else self.gloo, compress="bf16" in kind)
        return self.local(count, lanes, "exact10") if kind == "local" else self.ours(count, kind)


def main() -> None:
    job = json.loads(sys.argv[1])
    torch.set_num_threads(1)
    world = read_world()
    with Group(world, "oneccl", 900) as group:
        gloo = dist.new_group(backend="gloo")
        bench = Bench(group, gloo, job["model"], job["batch"], job["side"], job["bucket_mb"], job["bf16"])
        names = job["variants"]
        steps = {name: bench.variant(name) for name in names}
        for name in names:
            if not name.startswith("local"):
                steps[name]()
                steps[name]()
        bench.batch = job["batch"]
        taken: dict[str, list[float]] = {name: [] for name in names}
        for number in range(job["rounds"] + job["unmeasured"]):
            for name in names if number % 2 else reversed(names):
                dist.barrier(group=gloo)
                start = time.perf_counter()
                for _ in range(job["repeats"]):
                    steps[name]()
                if number >= job["unmeasured"]:
                    taken[name].append((time.perf_counter() - start) / job["repeats"])
            if group.rank == 0:
                note(f"round {number}")
        print(json.dumps(taken), flush=True)


if __name__ == "__main__":
    main()
