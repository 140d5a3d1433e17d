"""One of the two ranks of benchmarks/allreduce.py: gloo's all-reduce and another backend's, in turns.

    python benchmarks/allreduce_rank.py JSON-OF-A-PART

Rank 0 writes a line of JSON for each cell of the table to the part's ``results``.
"""

from __future__ import annotations

import dataclasses
import datetime
import functools
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from timing import note, paired_rounds
from wire import copy_s, tcp_speed

from distrib.comm.group import Group
from distrib.comm.table import prepare_backend
from distrib.stdout import quiet_stdout
from distrib.world import World

TIMEOUT_S = 120.0
LEAST_ROUNDS = 5
CELL_S, BLOCK_S = 5.0, 0.02
"""What the rounds of one cell, and the repetitions of one block, should take; fast cells take less."""
MOST_REPEATS = 100
DTYPES = {"fp32": torch.float32, "int32": torch.int32, "bf16": torch.bfloat16}


@dataclasses.dataclass(frozen=True)
class Part:
    """What one rank is to do."""

    world: dict[str, Any]
    core: int
    backend: str
    """Measured beside gloo; gloo alone if empty."""
    limit: str
    """What to measure as the limit: "memory", "tcp", or nothing if empty."""
    dtypes: Sequence[str]
    sizes: Sequence[int]
    rounds: int
    results: str


def rounds_and_repeats(once_s: Sequence[float], rounds: int) -> tuple[int, int]:
    """For works of which one repetition takes ``once_s`` each."""
    repeats = max(1, min(MOST_REPEATS, int(BLOCK_S / max(once_s))))
    affordable = int(CELL_S / (repeats * sum(once_s)))
    return min(rounds, max(LEAST_ROUNDS, affordable)), repeats


def measure(group: Group, handles: dict[str, Any], dtype: torch.dtype, size: int,
            rounds: int) -> dict[str, list[float]]:
    """Seconds of one all-reduce of ``size`` bytes over each of the groups, in every round: the slower rank's."""
    values = torch.empty(size // dtype.itemsize, dtype=dtype)

    def reduce_times(repeats: int, handle: Any) -> None:
        for _ in range(repeats):
            dist.all_reduce(values, group=handle)

    def works(repeats: int) -> dict[str, Callable[[], None]]:
        return {name: functools.partial(reduce_times, repeats, handle) for name, handle in handles.items()}

    for name, work in works(1).items():
        values.fill_(1)
        work()
        if not bool((values == group.size).all()):
            raise RuntimeError(f"{name} gave a wrong sum of {size} bytes of {dtype}")
    values.zero_()  # sums of zeros stay what they are
    trial = _slower(group, paired_rounds(works(1), 1, before=dist.barrier))
    rounds, repeats = rounds_and_repeats([seconds for seconds, in trial.values()], rounds)
    taken = _slower(group, paired_rounds(works(repeats), rounds, before=dist.barrier))
    return {name: [seconds / repeats for seconds in rows] for name, rows in taken.items()}


def _slower(group: Group, taken: dict[str, list[float]]) -> dict[str, list[float]]:
    rows = torch.tensor(list(taken.values()), dtype=torch.float64)
    group.all_reduce(rows, "max")
    return dict(zip(taken, rows.tolist(), strict=True))


def main() -> None:
    part = Part(**json.loads(sys.argv[1]))
    os.sched_setaffinity(0, {part.core})
    torch.set_num_threads(1)
    world = World(**part.world)
    with Group(world, "gloo", TIMEOUT_S) as group, quiet_stdout():
        handles: dict[str, Any] = {"gloo": dist.group.WORLD}
        speed = tcp_speed(group) if part.limit == "tcp" else 0.0
        if part.backend:
            handles[part.backend] = dist.new_group(backend=prepare_backend(part.backend, world),
                                                   timeout=datetime.timedelta(seconds=TIMEOUT_S))
        start = time.perf_counter()
        for dtype in part.dtypes:
            for size in part.sizes:
                limit_s = size / speed if speed else 0.0
                if part.limit == "memory":
                    dist.barrier()
                    limit_s = copy_s(size)
                cell = measure(group, handles, DTYPES[dtype], size, part.rounds)
                if group.rank == 0:
                    with Path(part.results).open("a") as results:
                        results.write(json.dumps({"dtype": dtype, "size": size, "limit_s": limit_s, **cell}) + "\n")
            if group.rank == 0:
                note(f"  gloo {part.backend} {dtype}: {time.perf_counter() - start:.0f} s since the start")


if __name__ == "__main__":
    main()
