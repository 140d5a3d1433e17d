"""Whole training steps of two ranks, one core each, over real links.

    python benchmarks/ddp_step.py steps [--rounds 10] [--links host,loopback,veth,1gbit]
    python benchmarks/ddp_step.py scale [--rounds 3] [--rates 1gbit,100mbit,10mbit] [--local 10x4]

steps: stock DDP over gloo and over oneCCL, in turns in one pair of processes: the time of the first over the time
of the second, for models from a small one with many buckets to ResNet-50.

scale: the scale model. One core of the test machine does about a hundredth of a two-socket node's ResNet-50, so two
ranks of one core, joined at 1 Gbit/s, stand for two nodes on 100 Gbit/s; 100 Mbit/s for 10 GbE, and 10 Mbit/s for
1 GbE. ResNet-50, 224 px, bf16 autocast, 32 images a lane. Efficiency: the seconds of a step of lone ranks, both
cores busy, over those of a step that is summed. Links other than one host's want root, for network namespaces.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from timing import note, ratio, show

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from launch.allocator import choose_allocator  # noqa: E402
from launch.local import free_port  # noqa: E402
from tests.rig.nodes import Nodes  # noqa: E402

RANK = Path(__file__).with_name("ddp_rank.py")
MODELS = {  # name -> (images a rank, side, MB a bucket, repeats)
    "small_cnn": (16, 28, 0.05, 10),
    "resnet18": (2, 64, 1, 4),
    "resnet50": (2, 64, 25, 4),
}


@contextlib.contextmanager
def pair(link: str) -> Iterator[Any]:
    """Two places to start ranks: a function (rank, argv, environment) -> process."""
    preload = choose_allocator("auto", os.environ).library
    common = {"WORLD_SIZE": "2", "OMP_NUM_THREADS": "1", **({"LD_PRELOAD": str(preload)} if preload else {})}
    if link in ("host", "loopback"):
        shared = {"LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()),
                  "CCL_ATL_SHM": str(int(link == "host"))}
        yield lambda rank, argv, **options: subprocess.Popen(
            argv, env={**os.environ, **common, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}, text=True,
            **options)
        return
    with Nodes(2) as nodes:
        if link != "veth":
            for name in nodes.names:
                nodes.shape(name, link)
        apart = {"LOCAL_WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": nodes.address("node1"),
                 "MASTER_PORT": "29400", "GLOO_SOCKET_IFNAME": "eth0"}
        yield lambda rank, argv, **options: nodes.start(
            nodes.names[rank], argv, {**common, **apart, "RANK": str(rank)}, **options)


def measure(link: str, job: dict[str, Any]) -> dict[str, list[float]]:
    """Seconds of every variant in every round, the slower rank's."""
    cores = sorted(os.sched_getaffinity(0))[:2]
    with pair(link) as start:
        ranks = [start(rank, ["taskset", "-c", str(core), sys.executable, str(RANK), json.dumps(job)],
                       stdout=subprocess.PIPE) for rank, core in enumerate(cores)]
        try:
            answers = [rank.communicate()[0] for rank in ranks]
        finally:
            for rank in ranks:
                rank.kill()
        if any(rank.returncode for rank in ranks):
            sys.exit(f"a rank failed over {link}")
    first, second = (json.loads(answer) for answer in answers)
    return {name: [max(a, b) for a, b in zip(first[name], second[name], strict=True)] for name in first}


def table_of_steps(links: list[str], rounds: int) -> None:
    show("| link | model | buckets of | gloo, ms | oneCCL, ms | gloo / oneCCL |\n|---|---|---|---|---|---|")
    for link in links:
        for model, (batch, side, bucket_mb, repeats) in MODELS.items():
            taken = measure(link, {"model": model, "batch": batch, "side": side, "bucket_mb": bucket_mb, "bf16": False,
                                   "variants": ["stock-gloo", "stock-oneccl"], "rounds": rounds, "unmeasured": 2,
                                   "repeats": repeats})
            gloo, ours = taken["stock-gloo"], taken["stock-oneccl"]
            middle, least, most = ratio(gloo, ours)
            show(f"| {link} | {model}, {side} px | {bucket_mb:g} MB | {1e3 * statistics.median(gloo):.1f} | "
                 f"{1e3 * statistics.median(ours):.1f} | {middle:.2f} ({least:.2f} to {most:.2f}) |")


def table_of_scale(rates: list[str], rounds: int, local_steps: int, local_lanes: int) -> None:
    variants = {
        "1gbit": ["alone", "stock-gloo", "stock-gloo-bf16", "exact", "exact16", "exact10"],
        "100mbit": ["alone", "stock-gloo", "stock-gloo-bf16", "exact16", "exact10", "alone 4", "exact16 4"],
        "10mbit": [f"alone {local_lanes}", f"local {local_steps} {local_lanes}"],
    }
    show("| link | what is summed | s a step | efficiency |\n|---|---|---|---|")
    for rate in rates:
        taken = measure(rate, {"model": "resnet50", "batch": 32, "side": 224, "bucket_mb": 25, "bf16": True,
                               "variants": variants[rate], "repeats": 1,
                               "rounds": 1 if rate == "10mbit" else rounds, "unmeasured": int(rate != "10mbit")})
        for name, seconds in taken.items():
            kind, *numbers = name.split()
            alone = taken.get(" ".join(["alone", *numbers[-1:]])) or taken["alone"]
            steps = int(numbers[0]) if kind == "local" else 1
            middle, least, most = ratio([a * steps for a in alone], seconds)
            show(f"| {rate} | {name} | {statistics.median(seconds) / steps:.2f} | "
                 f"{middle:.3f} ({least:.3f} to {most:.3f}) |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=("steps", "scale"))
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--links", default="host,loopback,veth,1gbit")
    parser.add_argument("--rates", default="1gbit,100mbit,10mbit")
    parser.add_argument("--local", default="10x4", help="local steps of a round x lanes of a rank")
    options = parser.parse_args()
    note("two ranks, one core each; wants a quiet machine")
    if options.table == "steps":
        table_of_steps(options.links.split(","), options.rounds or 10)
    else:
        table_of_scale(options.rates.split(","), options.rounds or 3, *map(int, options.local.split("x")))


if __name__ == "__main__":
    main()
