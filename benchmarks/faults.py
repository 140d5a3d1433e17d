"""What a fault costs an elastic run of the digits demo.

    python benchmarks/faults.py [--backend gloo] [--only TEXT]

For each fault of tests/rig/faults.py: whether the run finished with the undisturbed run's model, samples lost or
repeated, and seconds from the fault to the next committed step. Wants a quiet machine.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from tests.rig.faults import FAULTS, SILENCE_S, World, run_fault  # noqa: E402
from tests.rig.nodes import make_quota  # noqa: E402

SETTINGS = ("train.steps=200", "checkpoint.every_steps=20")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--backend", default="gloo")
    parser.add_argument("--only", default="", help="Faults whose name has this in it.")
    wanted = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        subprocess.run([sys.executable, ROOT / "examples/digits/make_digits.py", folder / "digits"], check=True,
                       stdout=subprocess.DEVNULL)
        subprocess.run([sys.executable, "-m", "distrib", "prepare", folder / "digits/images", "--labels",
                        folder / "digits/labels.csv", "--image-column", "image", "--label-column", "label", "--out",
                        folder / "dataset"], check=True, capture_output=True)
        settings = (*SETTINGS, f"data.dataset={folder / 'dataset'}")
        experiment = ROOT / "examples/digits/digits.yaml"
        whole = undisturbed(folder / "whole", experiment, settings)
        print(f"{'fault':40} {'ranks':5} {'same':5} {'samples':8} {'to next step':>13} {'a step':>8}")
        for fault in FAULTS:
            if wanted.only in fault.name:
                run = folder / fault.name.replace(" ", "-")
                outcome = run_fault(fault, experiment, run, wanted.backend, settings)
                same = outcome.finished and outcome.weights_sha256 == whole
                samples = f"-{outcome.missing} +{outcome.repeated}"
                waits = f" ({SILENCE_S:g} s of it silence)" if fault.silent else ""
                show(fault.name, fault.size, same, samples, outcome.seconds, f"{outcome.step_s:6.3f} s{waits}")
        if wanted.only in "a rank is held back":
            held_back(folder, experiment, settings)


def show(name: str, size: int, same: bool, samples: str, seconds: float, rest: str) -> None:
    print(f"{name:40} {size:5} {'yes' if same else 'NO':5} {samples:8} {seconds:11.2f} s {rest}", flush=True)


def held_back(folder: Path, experiment: Path, settings: tuple[str, ...]) -> None:
    """Images a second of two ranks on a core each; with one held to half a core; and with lanes that move from it."""
    speeds = []
    cases = ((None, "false"), (0.5, "false"), (0.5, "true"))
    for number, (cores, moves) in enumerate(cases):
        run = folder / f"held-{number}"
        arguments: list[str | Path] = [experiment]
        for setting in (*settings, "train.steps=1500", "train.lanes=16", "train.global_batch=256", "comm.backend=gloo",
                        "watch.every_s=2", f"comm.move_lanes={moves}", "checkpoint.every_steps=0",
                        "evaluate.every_epochs=100"):
            arguments += ["--set", setting]
        with World(run, 2, arguments) as world:
            for rank, process in enumerate(world.ranks):
                os.sched_setaffinity(process.pid, {rank})
            world.until_step(20)
            group = make_quota(f"held-{os.getpid()}", cores)[0] if cores else None
            if group is not None:
                (group / "cgroup.procs").write_text(str(world.ranks[1].pid))
            time.sleep(20.0)
            records = world.records()
        if group is not None:
            group.rmdir()
        late = [record for record in records if record["time"] > records[-1]["time"] - 8.0]
        speeds.append(256 * (len(late) - 1) / (late[-1]["time"] - late[0]["time"]))
    could = speeds[0] * 0.75
    print(f"a rank held to half a core: {speeds[1] / could:.2f} of what the cores could give; "
          f"with lanes that move: {speeds[2] / could:.2f} ({', '.join(f'{speed:.0f}' for speed in speeds)} images/s)")


def undisturbed(run: Path, experiment: Path, settings: tuple[str, ...]) -> str:
    words = [word for setting in settings for word in ("--set", setting)]
    done = subprocess.run([sys.executable, "-m", "distrib", "train", experiment, *words, "--run", run, "--json"],
                          check=True, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    digest: str = json.loads(done.stdout)["weights_sha256"]
    return digest


if __name__ == "__main__":
    main()
