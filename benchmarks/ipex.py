"""What IPEX brings to the training step of ResNet-50: CPU seconds without it over CPU seconds with it.

    make .venv-ipex/.installed
    .venv-ipex/bin/python benchmarks/ipex.py [--rounds 5] [--pairs fp32,bf16] [--json]

The step is ours: one lane of 32 images of 224 px, summed exactly through DDP, fused SGD. "theirs" is the bare loop
without DDP, and with all that ipex.optimize does if left alone: packed weights, its own optimiser step, and in bf16
weights of that type beside float32 ones. IPEX changes kernels for its whole process, so the two sides of a pair are
processes; they take turns, one step each, on one core. Only one pair is in memory at a time.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from timing import note, one_core, ratio, show

BATCH, SIDE, CLASSES = 32, 224, 1000
PAIRS = ("fp32", "bf16", "fp32-theirs", "bf16-theirs")


def our_step(bf16: bool, ipex: bool) -> Callable[[], object]:
    import numpy as np
    import torch

    from distrib.comm.group import Group
    from distrib.config import Experiment
    from distrib.data.stream import Batch
    from distrib.models.normalise import Normalise
    from distrib.train.build import data_parallel, starting_model
    from distrib.train.ipex import optimize
    from distrib.train.optimise import build_optimizer, lane_loss
    from distrib.train.reduction import Stop
    from distrib.train.reductions import build_reduction
    from distrib.train.step import LaneStep
    from distrib.world import World

    torch.set_num_threads(1)
    experiment = Experiment.model_validate({
        "data": {"dataset": "none"}, "model": {"name": "resnet50"},
        "train": {"global_batch": BATCH, "lanes": 1, "lr": 0.01, "ipex": ipex}})
    group = Group(World())
    model = starting_model(experiment, CLASSES, note).train()
    optimizer = build_optimizer(model, experiment.train)
    if ipex:
        optimize(model, optimizer, group)
    reduction = build_reduction(experiment.train, group, model, 0)
    ddp = data_parallel(model, compiled=False)
    reduction.attach(ddp)
    lane_step = LaneStep(model, ddp, reduction, loss=lane_loss(experiment.train, None),
                         prepare=Normalise(experiment.data.mean, experiment.data.std), autocast=bf16, seed=0)
    rng = np.random.default_rng(0)
    batch = Batch(lane=0, samples_N=np.arange(BATCH), labels_N=rng.integers(0, CLASSES, BATCH),
                  images_NHWC=rng.integers(0, 256, (BATCH, SIDE, SIDE, 3), dtype=np.uint8))
    done = 0

    def step() -> None:
        nonlocal done
        lane_step.run(done, [batch], stop=Stop.NO)
        optimizer.step()
        done += 1

    return step


def their_step(bf16: bool, ipex: bool) -> Callable[[], object]:
    import torch
    import torch.nn.functional as F

    from distrib.models.resnet import resnet50

    torch.set_num_threads(1)
    torch.manual_seed(0)
    model: Any = resnet50(CLASSES).to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    optimizer: Any = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, fused=True)
    if ipex:
        import intel_extension_for_pytorch

        model, optimizer = intel_extension_for_pytorch.optimize(
            model, optimizer=optimizer, dtype=torch.bfloat16 if bf16 else torch.float32, inplace=True)
    images_NCHW = torch.randn(BATCH, 3, SIDE, SIDE).to(memory_format=torch.channels_last)
    labels_N = torch.randint(0, CLASSES, (BATCH,))

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            logits_NK = model(images_NCHW)
        F.cross_entropy(logits_NK.float(), labels_N).backward()
        optimizer.step()

    return step


def child(pair: str, ipex: bool) -> None:
    """A line on stdin asks for a step; the answer is a line with its CPU seconds."""
    one_core()
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # IPEX and gloo chat on stdout
    step = (their_step if pair.endswith("theirs") else our_step)(pair.startswith("bf16"), ipex)
    for _ in sys.stdin:
        start = time.process_time()
        step()
        print(time.process_time() - start, file=answers)


def start(pair: str, side: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, __file__, "--child", pair, side], stdin=subprocess.PIPE,
                            stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


def ask(process: subprocess.Popen[str]) -> float:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("step\n")
    process.stdin.flush()
    return float(process.stdout.readline())


def measure(pair: str, rounds: int) -> dict[str, Any]:
    sides = {side: start(pair, side) for side in ("without", "with")}
    taken: dict[str, list[float]] = {side: [] for side in sides}
    try:
        for number in range(rounds + 2):  # exponents are found in the first step, DDP's buckets made in the second
            for side in sides if number % 2 else reversed(sides):
                seconds = ask(sides[side])
                if number >= 2:
                    taken[side].append(seconds)
            note(f"{pair}: round {number} of {rounds + 1}")
    finally:
        for process in sides.values():
            process.kill()
            process.communicate()
    middle, least, most = ratio(taken["without"], taken["with"])
    return {"pair": pair, "gain": middle, "least": least, "most": most,
            **{f"{side}_images_per_cpu_s": BATCH / statistics.median(taken[side]) for side in sides}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pairs", default=",".join(PAIRS))
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.child[0], options.child[1] == "with")
        return
    for pair in options.pairs.split(","):
        row = measure(pair, options.rounds)
        show(json.dumps(row) if options.json else
             f"{pair:12} images per CPU second: {row['without_images_per_cpu_s']:.2f} without IPEX, "
             f"{row['with_images_per_cpu_s']:.2f} with; {row['gain']:.3f} x ({row['least']:.3f} to {row['most']:.3f})")


if __name__ == "__main__":
    main()
