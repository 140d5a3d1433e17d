"""What protection costs a run to which nothing happens: checkpoints, and all that recovery needs.

    python benchmarks/protection.py [--rounds 8] [--steps 320] [--ranks 2] [--backend gloo]

Trains the digits demo again and again. What checkpoints cost is measured within runs that write one every 40 steps: the
20 steps behind one against the 20 after those, in turns, so that a checkpoint's whole cost falls on 20 steps. What the
guard costs is measured in the same way. What else recovery needs, threads that send a few bytes now and then, only
shows between runs: pairs of bare and elastic ones, which differ by more than that of themselves. Prints medians of
ratios, with the quarters around them. Wants a quiet machine.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from pathlib import Path

from digits import EXPERIMENT, make_digits
from timing import note, show

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from tests.rig.faults import World  # noqa: E402

BARE = ("guard.every_steps=0", "checkpoint.every_steps=0", "evaluate.every_epochs=1000")
CASES: dict[str, tuple[bool, tuple[str, ...]]] = {
    "bare": (False, ()),
    "a checkpoint every 40 steps": (False, ("checkpoint.every_steps=40",)),
    "elastic, guard every 40 steps": (True, ("guard.every_steps=40",)),
}
"""name -> (elastic, settings)."""
WARM_UP = 40
"""Steps that do not count."""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--steps", type=int, default=320)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--backend", default="gloo")
    wanted = parser.parse_args()
    times: dict[str, list[list[float]]] = {name: [] for name in CASES}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        dataset = make_digits(folder)
        for number in range(wanted.rounds):
            for name in list(CASES) if number % 2 else reversed(list(CASES)):
                taken = step_times(folder / f"{name} {number}", dataset, wanted, *CASES[name])
                note(f"{name}: {1e3 * (taken[-1] - taken[0]) / (len(taken) - 1):.1f} ms a step")
                times[name].append(taken)
    bare, checkpoints, elastic = times.values()
    say("a checkpoint every 20 steps", within(checkpoints))
    say("a guard every 20 steps (its default is every 50)", within(elastic))
    say("elastic, guard every 40 steps, beside bare runs", [(ours[-1] - ours[0]) / (its[-1] - its[0])
                                                            for ours, its in zip(elastic, bare, strict=True)])


def within(runs: list[list[float]]) -> list[float]:
    """Of each 40 steps the first 20, in which what is due every 40 is done, to the other 20."""
    return [(run[i + 20] - run[i]) / (run[i + 40] - run[i + 20]) for run in runs for i in range(0, len(run) - 40, 40)]


def say(what: str, ratios: list[float]) -> None:
    """A line: the median of what it costs, and the quarters."""
    low, middle, high = (100 * (one - 1) for one in statistics.quantiles(ratios, n=4))
    show(f"{what}: {middle:+.1f}% a step ({low:+.1f}% to {high:+.1f}%, of {len(ratios)} pairs)")


def step_times(run: Path, dataset: Path, wanted: argparse.Namespace, elastic: bool,
               settings: tuple[str, ...]) -> list[float]:
    """When each step from `WARM_UP` on was recorded, in seconds, what was due after the one before it included."""
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
        return [record["time"] for record in world.records()][WARM_UP - 1:]


if __name__ == "__main__":
    main()
