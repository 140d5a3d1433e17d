"""One rank that sums: `python -m tests.rig.summing BACKEND [forever]` in the environment of a world.

Prints one line of JSON: {"right": [...], "error": message or null, "after_s": seconds, "engine": [...]}: sizes whose
sums were right, and the CPUs that oneCCL's thread may run on.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import torch

from distrib.comm.group import Group
from distrib.errors import WorldError
from distrib.world import read_world

SIZES = (1, 1023, 1 << 20, (6 << 20) + 1)


def main() -> None:
    torch.set_num_threads(1)
    world = read_world()
    right: list[int] = []
    engine: list[int] = []
    error, begun = None, time.monotonic()
    try:
        with Group(world, sys.argv[1], 60) as group:
            for size in SIZES:
                tensor = torch.arange(size, dtype=torch.int32) % 1000 + group.rank
                group.all_reduce(tensor)
                expected = (torch.arange(size, dtype=torch.int32) % 1000) * group.size
                expected += group.size * (group.size - 1) // 2
                if torch.equal(tensor, expected):
                    right.append(size)
            for thread in Path("/proc/self/task").iterdir():
                if (thread / "comm").read_text().strip() == "oneccl":
                    engine = sorted(os.sched_getaffinity(int(thread.name)))
            print("summed", file=sys.stderr, flush=True)
            while "forever" in sys.argv:
                begun = time.monotonic()
                group.all_reduce(torch.ones(1000))
                time.sleep(0.01)
    except WorldError as caught:
        error = str(caught)
    print(json.dumps({"right": right, "error": error, "after_s": time.monotonic() - begun,
                      "engine": engine}), flush=True)


if __name__ == "__main__":
    main()
