"""What a whole training step costs over the bare compute loop: images/s of one over images/s of the other.

    python benchmarks/overhead.py [--models resnet50,resnet18] [--rounds 12] [--images 600] [--cpu]

The whole step reads real 600x450 JPEG shards (generated lesions), decodes and augments them, computes
two lanes of 32 images, sums them exactly through DDP, updates the weights and writes the metrics. The
bare loop computes the same two micro-batches from a tensor in memory and updates the weights. Both run in
one process, on one core, in turns. With --cpu, CPU seconds of the process, decoding included, stand in
for the wall's: the same on an idle core, and fairer on one that other machines disturb.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from timing import note, one_core, paired_rounds, ratio, show

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "examples" / "melanoma"))

from lesions import write_ham10000  # noqa: E402

from distrib.comm.group import Group  # noqa: E402
from distrib.config import Experiment  # noqa: E402
from distrib.data.manifest import load_manifest  # noqa: E402
from distrib.data.prepare import run_prepare  # noqa: E402
from distrib.data.shards import ShardReader  # noqa: E402
from distrib.data.stream import Stream  # noqa: E402
from distrib.rundir import RunDir  # noqa: E402
from distrib.train.build import starting_model, training_order, training_transform  # noqa: E402
from distrib.train.log import RunLog  # noqa: E402
from distrib.train.loop import Progress, Trainer  # noqa: E402
from distrib.train.optimise import build_optimizer  # noqa: E402
from distrib.train.paces import build_pace  # noqa: E402
from distrib.train.processor import resolve_precision  # noqa: E402
from distrib.train.reduction import Stop  # noqa: E402
from distrib.train.reductions import build_reduction  # noqa: E402
from distrib.train.watch import build_watch  # noqa: E402
from distrib.world import World  # noqa: E402

LANES, LANE_BATCH, SIDE = 2, 32, 224


def make_dataset(folder: Path, images: int) -> Path:
    write_ham10000(folder / "ham", images, jobs=2)
    run_prepare(folder / "ham", folder / "shards", labels=folder / "ham" / "HAM10000_metadata.csv",
                image_column="image_id", label_column="dx", group_column="lesion_id", split="1/0/0")
    return folder / "shards"


def measure(model_name: str, dataset: Path, work: Path, rounds: int, clock: Callable[[], float]) -> None:
    manifest = load_manifest(dataset)
    samples = manifest.samples("train")
    steps = rounds + 4
    experiment = Experiment.model_validate({
        "data": {"dataset": dataset, "image_size": SIDE, "augment": {"rotate_degrees": 20, "brightness": 0.1}},
        "model": {"name": model_name},
        "train": {"global_batch": LANES * LANE_BATCH, "lanes": LANES, "steps": steps, "lr": 0.01,
                  "precision": resolve_precision("auto")},
    })
    bf16 = experiment.train.precision == "bf16"
    run = RunDir(work / model_name)
    run.root.mkdir()
    with contextlib.ExitStack() as stack:
        group = stack.enter_context(Group(World()))
        model = starting_model(experiment, len(manifest.classes), note)
        reduction = build_reduction(experiment.train, group, model, 0)
        optimizer = build_optimizer(model, experiment.train)
        reader = stack.enter_context(ShardReader(dataset, samples))
        stream = stack.enter_context(Stream(
            reader, samples, training_order(experiment, samples), training_transform(experiment), side=SIDE,
            lanes=range(LANES), first_step=0, last_step=steps, threads=1, prefetch_steps=2,
        ))
        log = stack.enter_context(RunLog(run, first_step=0, total_steps=steps))
        trainer = Trainer(
            experiment=experiment, num_samples=len(samples), total_steps=steps, model=model,
            optimizer=optimizer, validate=None, average=None, progress=Progress(),
            pace=build_pace(experiment, len(samples), None, group, model, optimizer, reduction, stream, None),
            log=log, writer=None, wish=lambda: Stop.NO, agree=lambda: True, guarded=lambda *_: False,
            watch=build_watch(experiment.watch, group, LANES, log),
        )
        bare_model = starting_model(experiment, len(manifest.classes), note).train()
        bare_optimizer = build_optimizer(bare_model, experiment.train)
        images_NCHW = torch.randn(LANE_BATCH, 3, SIDE, SIDE).to(memory_format=torch.channels_last)
        labels_N = torch.randint(0, len(manifest.classes), (LANE_BATCH,))

        def whole() -> None:
            trainer.one_period()

        def bare() -> None:
            bare_optimizer.zero_grad(set_to_none=True)
            for _ in range(LANES):
                with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                    logits_NK = bare_model(images_NCHW)
                (F.cross_entropy(logits_NK.float(), labels_N) / LANES).backward()
            bare_optimizer.step()

        whole()  # the first step is done twice, to find the exponents; DDP then arranges its buckets anew
        taken = paired_rounds({"bare": bare, "whole": whole}, rounds, clock)
    middle, least, most = ratio(taken["bare"], taken["whole"])
    rate = LANES * LANE_BATCH / sorted(taken["whole"])[len(taken["whole"]) // 2]
    show(f"{model_name:10} {experiment.train.precision}  whole step {rate:6.2f} images/s  "
         f"over the bare loop: {middle:.3f} ({least:.3f} to {most:.3f})")
    records = [json.loads(line) for line in run.metrics.read_text().splitlines()][-rounds:]
    split = {name: statistics.median(r[f"{name}_s"] / r["step_s"] for r in records)
             for name in ("data", "compute", "communication", "rest")}
    show("           wall of a whole step: " + ", ".join(f"{name} {100 * part:.2f}%" for name, part in split.items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="resnet50,resnet18")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--images", type=int, default=600)
    parser.add_argument("--cpu", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        note("writing the images")
        dataset = make_dataset(Path(folder), options.images)
        core = one_core()
        torch.set_num_threads(1)
        allocator = os.environ.get("LD_PRELOAD") or "the system's malloc; `launch run` sets tcmalloc"
        show(f"{LANES} lanes of {LANE_BATCH}, {SIDE} px, core {core}, {allocator}; median (smallest to largest) of "
             f"{options.rounds} pairs{', CPU seconds' if options.cpu else ''}")
        for name in options.models.split(","):
            measure(name, dataset, Path(folder), options.rounds,
                    time.process_time if options.cpu else time.perf_counter)


if __name__ == "__main__":
    main()
