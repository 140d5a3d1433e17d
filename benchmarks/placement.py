"""Ranks placed by `launch` against ranks that nobody pins, and against each mpirun's default binding: images/s.

    python benchmarks/placement.py [--ranks 2] [--rounds 5] [--steps 6] [--side 112] [--mpirun NAME,NAME]

Every way starts the same DDP training of ResNet-18 (batch 32 a rank, over gloo) with nothing said about threads, as a
user's script has it. The ways take turns, so that the machine's drift meets all of them.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from timing import note, ratio, show

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from launch.local import free_port  # noqa: E402


def train(steps: int, side: int) -> None:
    """One rank; rank 0 prints the images/s of all."""
    import torch
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel

    from distrib.models.table import build_model
    from distrib.world import read_world

    world, batch = read_world(), 32
    dist.init_process_group("gloo", rank=world.rank, world_size=world.size)
    module: Any = build_model("resnet18", 10)
    model = DistributedDataParallel(module.to(memory_format=torch.channels_last))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    images_NCHW = torch.rand(batch, 3, side, side).to(memory_format=torch.channels_last)
    labels_N = torch.arange(batch) % 10
    for step in range(steps + 2):
        if step == 2:
            dist.barrier()
            start = time.perf_counter()
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(images_NCHW), labels_N).backward()
        optimizer.step()
    dist.barrier()
    if world.is_first:
        print(json.dumps({"images_s": steps * batch * world.size / (time.perf_counter() - start),
                          "threads": torch.get_num_threads()}), flush=True)
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--side", type=int, default=112)
    parser.add_argument("--mpirun", default="mpirun.openmpi,mpirun.mpich", help="where installed")
    parser.add_argument("--rank", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank:
        train(options.steps, options.side)
        return
    rank = [sys.executable, __file__, "--rank", "--steps", str(options.steps), "--side", str(options.side)]
    ranks = str(options.ranks)
    plain = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}

    def meeting() -> dict[str, str]:
        return {**plain, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "GLOO_SOCKET_IFNAME": "lo"}

    def by_launch(cluster: Path) -> str:
        return subprocess.run([sys.executable, "-m", "launch", "run", cluster, "--ranks", ranks, "--", *rank],
                              env=plain, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True,
                              cwd=ROOT).stdout

    def unpinned() -> str:
        environment = meeting()
        environment |= {"WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
        started = [subprocess.Popen(rank, env={**environment, "RANK": str(number), "LOCAL_RANK": str(number)},
                                    stdout=subprocess.PIPE, text=True) for number in range(options.ranks)]
        return "".join(process.communicate()[0] for process in started)

    def by_mpirun(program: str) -> str:
        as_root = ["--allow-run-as-root"] if "openmpi" in program and os.geteuid() == 0 else []
        return subprocess.run([program, *as_root, "-np", ranks, *rank], env=meeting(), stdout=subprocess.PIPE,
                              text=True, check=True).stdout

    with tempfile.TemporaryDirectory() as folder:
        cluster = Path(folder, "cluster.yaml")
        cluster.write_text("name: placement\nallocator: system\n")  # the same malloc for all: only places differ
        ways: dict[str, Callable[[], str]] = {"launch": lambda: by_launch(cluster), "unpinned": unpinned}
        for program in options.mpirun.split(","):
            if shutil.which(program):
                ways[f"{program}, its default"] = lambda program=program: by_mpirun(program)  # type: ignore[misc]
            else:
                note(f"{program} is not installed, and left out")
        taken: dict[str, list[float]] = {name: [] for name in ways}
        threads: dict[str, int] = {}
        for number in range(options.rounds):
            for name in ways if number % 2 else reversed(ways):
                answer = json.loads(ways[name]())
                taken[name].append(answer["images_s"])
                threads[name] = answer["threads"]
            note(f"round {number}: " + ", ".join(f"{name} {rates[-1]:.1f}" for name, rates in taken.items()))
    show("| ranks started by | threads of a rank | images/s | launch's images/s over these |\n|---|---|---|---|")
    for name, rates in taken.items():
        middle, least, most = ratio(taken["launch"], rates)
        show(f"| {name} | {threads[name]} | {statistics.median(rates):.1f} | "
             f"{middle:.2f} ({least:.2f} to {most:.2f}) |")


if __name__ == "__main__":
    main()
