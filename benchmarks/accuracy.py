"""Test accuracy on the digits with several ways to sum over lanes, several seeds each.

    python benchmarks/accuracy.py [--modes exact,fast,exact16,exact10,bf16,...] [--seeds 5]
                                  [--set train.epochs=30 ...] [--out FOLDER]

Uses the public commands only. All modes share data, seeds and everything else. With --out, what was measured there
before (result-MODE-SEED.json) is not measured again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from digits import make_digits
from timing import note, show

MODES: dict[str, list[str]] = {
    "exact": [],
    "fast": ["train.reduction=fast"],
    "exact16": ["train.reduction=exact16"],
    "exact10": ["train.reduction=exact10"],
    "bf16": ["train.reduction=fast", "train.compress=bf16"],
    "powersgd": ["train.reduction=fast", "train.compress=powersgd", "train.powersgd_start=30"],
    "local": ["train.local_steps=10"],
    "rounds": ["train.local_steps=10", "train.reduction=exact10", "train.outer_lr=1.0", "train.outer_momentum=0.5"],
}
"""Overrides of the example's experiment, by mode. The digits' 625 steps are few for PowerSGD's usual start."""

ROOT = Path(__file__).resolve().parent.parent


def run(*words: str | Path) -> Any:
    """A command's JSON."""
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, words))}\n{done.stderr}")
    return json.loads(done.stdout)


def measure(folder: Path, mode: str, seed: int, overrides: list[str]) -> float:
    """Train and evaluate once; the accuracy on the test split."""
    kept, target = folder / f"result-{mode}-{seed}.json", folder / f"{mode}-{seed}"
    if kept.exists():
        return float(json.loads(kept.read_text())["accuracy"])
    words: list[str | Path] = [
        sys.executable, "-m", "distrib", "train", ROOT / "examples/digits/digits.yaml", "--run", target, "--json",
    ]
    for override in (f"data.dataset={folder / 'dataset'}", f"seed={seed}", *MODES[mode], *overrides):
        words += ["--set", override]
    run(sys.executable, "-m", "launch", "run", ROOT / "cluster_configs/dev.yaml", "--", *words)
    report = run(sys.executable, "-m", "distrib", "evaluate", target, "--split", "test", "--bootstrap", "0", "--json")
    kept.write_text(json.dumps(report))
    return float(report["accuracy"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--modes", default="exact,fast", help="some of " + ",".join(MODES))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    accuracies: dict[str, list[float]] = {mode: [] for mode in options.modes.split(",")}
    if unknown := sorted(accuracies.keys() - MODES.keys()):
        parser.error(f"--modes: {unknown[0]!r} is none of {', '.join(MODES)}")
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.out or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "dataset").exists():
            make_digits(folder)
        for seed in range(options.seeds):
            for mode, found in accuracies.items():
                found.append(measure(folder, mode, seed, options.overrides))
                note(f"seed {seed}, {mode}: {found[-1]:.4f}")
        show("| sums | " + " | ".join(f"seed {seed}" for seed in range(options.seeds)) + " | mean | spread |")
        show("|---|" + "---|" * (options.seeds + 2))
        for mode, found in accuracies.items():
            spread = statistics.stdev(found) if len(found) > 1 else 0.0
            show(f"| {mode} | " + " | ".join(f"{a:.3f}" for a in found)
                 + f" | {statistics.mean(found):.4f} | {spread:.4f} |")


if __name__ == "__main__":
    main()
