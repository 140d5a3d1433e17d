"""What a fault costs an elastic run of the digits demo.

    python benchmarks/faults.py [--backend gloo] [--launcher none] [--only TEXT]

For each fault of tests/rig/faults.py: whether the run finished with the undisturbed run's model, samples lost or
repeated, steps done again, and seconds from the fault to the next committed step. With --launcher local,
mpirun.openmpi, mpirun.mpich or slurm the main ones under that launcher. Then a killed rank beside torchrun's restart of
the same training, and a rank that is held to half a core. Wants a quiet machine; some faults want root.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

from digits import EXPERIMENT, make_digits

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from tests.rig.faults import FAULTS, LAUNCHED, SILENCE_S, Outcome, World, held, run_fault  # noqa: E402
from tests.rig.launched import LAUNCHERS, launched  # noqa: E402

SETTINGS = ("train.steps=200", "checkpoint.every_steps=20", "evaluate.every_epochs=5")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--backend", default="gloo")
    parser.add_argument("--launcher", default="none", choices=("none", *LAUNCHERS))
    parser.add_argument("--only", default="", help="Faults whose name has this in it.")
    wanted = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # and end the ranks
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        settings = (*SETTINGS, f"data.dataset={make_digits(folder)}")
        whole = undisturbed(folder / "whole", EXPERIMENT, settings)
        within = None if wanted.launcher == "none" else partial(launched, wanted.launcher)
        print(f"{'fault':48} {'ranks':5} {'same':5} {'samples':8} {'again':>5} {'to next step':>13} {'a step':>8}")
        for fault in FAULTS if within is None else LAUNCHED:
            if wanted.only in fault.name:
                outcome = run_fault(fault, EXPERIMENT, folder / fault.name, wanted.backend, settings, within)
                waits = f" ({SILENCE_S:g} s of it silence)" if fault.silent else ""
                show(fault.name, fault.size, outcome, whole, waits)
        if wanted.only in "torchrun":
            beside_torchrun(folder, settings, whole)
        if wanted.only in "a rank is held back":
            held_back(folder, EXPERIMENT, settings)


def beside_torchrun(folder: Path, settings: tuple[str, ...], whole: str) -> None:
    """A rank is killed: elastic, under our launcher, and started again by torchrun from the newest checkpoint."""
    fault = LAUNCHED[0]
    seconds = []
    for launcher in ("local", "torchrun"):
        outcome = run_fault(fault, EXPERIMENT, folder / launcher, "gloo", settings, partial(launched, launcher))
        show(f"{fault.name}: {launcher}", fault.size, outcome, whole)
        seconds.append(outcome.seconds)
    print(f"torchrun's restart takes {seconds[1] / seconds[0]:.0f} times as long")


def show(name: str, size: int, outcome: Outcome, whole: str, more: str = "") -> None:
    same = "yes" if outcome.finished and outcome.weights_sha256 == whole else "NO"
    print(f"{name:48} {size:5} {same:5} {f'-{outcome.missing} +{outcome.repeated}':8} {outcome.done_again:5} "
          f"{outcome.seconds:11.2f} s {outcome.step_s:6.3f} s{more}", flush=True)


def held_back(folder: Path, experiment: Path, settings: tuple[str, ...]) -> None:
    """Images a second of two ranks on a core each, before, while and after one is held to half a core; with lanes that
    stay, and with lanes that move from it. Compared within a run, since a machine's pace changes by itself."""
    for moves in ("false", "true"):
        arguments: list[str | Path] = [experiment]
        for setting in (*settings, "train.steps=100000", "train.lanes=16", "train.global_batch=256",
                        "comm.backend=gloo", "watch.every_s=2", f"comm.move_lanes={moves}", "checkpoint.every_steps=0",
                        "evaluate.every_epochs=100000"):
            arguments += ["--set", setting]
        with World(folder / f"held-{moves}", 2, arguments) as world:
            for rank, process in enumerate(world.ranks):
                os.sched_setaffinity(process.pid, {rank})
            world.until_step(20)
            before = speed_after(world, 45.0)
            with held(world.ranks[1].pid, 0.5):
                meanwhile = speed_after(world, 45.0)
            after = speed_after(world, 45.0)
        could = (before + after) / 2 * 0.75
        print(f"a rank held to half a core, lanes {'move' if moves == 'true' else 'stay'}: {meanwhile / could:.2f} of "
              f"what the cores could give ({before:.0f}, {meanwhile:.0f}, {after:.0f} images/s before, meanwhile and "
              "after)", flush=True)


def speed_after(world: World, wait_s: float) -> float:
    """Images a second of the last 30 s."""
    time.sleep(wait_s)
    records = world.records()
    late = [float(record["time"]) for record in records if record["time"] > time.time() - 30.0]
    return 256 * (len(late) - 1) / (late[-1] - late[0])


def undisturbed(run: Path, experiment: Path, settings: tuple[str, ...]) -> str:
    words = [word for setting in settings for word in ("--set", setting)]
    done = subprocess.run([sys.executable, "-m", "distrib", "train", experiment, *words, "--run", run, "--json"],
                          check=True, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    digest: str = json.loads(done.stdout)["weights_sha256"]
    return digest


if __name__ == "__main__":
    main()
