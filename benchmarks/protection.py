"""What protection costs a run to which nothing happens: checkpoints, and all that recovery needs.

    python benchmarks/protection.py [--rounds 8] [--steps 300] [--ranks 2] [--backend gloo]

Trains the digits demo again and again, in turns: bare; with a checkpoint every 20 steps; elastic, with its guard every
50 steps (its default). Prints the median of the ratios of seconds a step, pair by pair. Wants a quiet machine.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from itertools import pairwise
from pathlib import Path

from digits import EXPERIMENT, make_digits
from timing import note, ratio, show

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from tests.rig.faults import World  # noqa: E402

BARE = ("guard.every_steps=0", "checkpoint.every_steps=0", "evaluate.every_epochs=1000")
CASES: dict[str, tuple[bool, tuple[str, ...]]] = {
    "bare": (False, ()),
    "a checkpoint every 20 steps": (False, ("checkpoint.every_steps=20",)),
    "elastic, guard every 50 steps": (True, ("guard.every_steps=50",)),
}
"""name -> (elastic, settings)."""
WARM_UP = 40
"""Steps that do not count."""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--backend", default="gloo")
    wanted = parser.parse_args()
    taken: dict[str, list[float]] = {name: [] for name in CASES}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        dataset = make_digits(folder)
        for number in range(wanted.rounds):
            for name in list(CASES) if number % 2 else reversed(list(CASES)):
                seconds = step_s(folder / f"{name} {number}", dataset, wanted, *CASES[name])
                note(f"{name}: {1e3 * seconds:.1f} ms a step")
                taken[name].append(seconds)
    for name in CASES:
        if name != "bare":
            cost = [100 * (one - 1) for one in ratio(taken[name], taken["bare"])]
            show("{}: {:+.1f}% a step ({:+.1f}% to {:+.1f}%)".format(name, *cost))


def step_s(run: Path, dataset: Path, wanted: argparse.Namespace, elastic: bool, settings: tuple[str, ...]) -> float:
    """Seconds a step of a run of the digits demo, what is due after steps included."""
    arguments: list[str | Path] = [EXPERIMENT]
    for setting in (f"data.dataset={dataset}", f"train.steps={wanted.steps}",
                    f"comm.backend={wanted.backend}", *BARE, *settings):
        arguments += ["--set", setting]
    with World(run, wanted.ranks, arguments, elastic=elastic) as world:
        for rank, process in enumerate(world.ranks):
            os.sched_setaffinity(process.pid, {rank % (os.cpu_count() or 1)})
        codes = world.wait()
        if any(codes):
            raise SystemExit(world.errors())
        times = [record["time"] for record in world.records()][WARM_UP:]
    return statistics.fmean(b - a for a, b in pairwise(times))


if __name__ == "__main__":
    main()
