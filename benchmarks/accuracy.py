"""Test accuracy on the digits with exact and with ordinary sums, several seeds each.

    python benchmarks/accuracy.py [--seeds 5] [--set train.epochs=30 ...] [--out FOLDER]

Uses the public commands only. Both reductions share data, seeds and everything else.
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

from timing import note, show

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent


def run(*words: str | Path) -> Any:
    """A command's JSON."""
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, words))}\n{done.stderr}")
    return json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.out or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run([sys.executable, ROOT / "examples/digits/make_digits.py", folder / "digits"], check=True)
        run(BIN / "distrib", "prepare", folder / "digits/images", "--labels", folder / "digits/labels.csv",
            "--image-column", "image", "--label-column", "label", "--out", folder / "dataset", "--json")
        accuracies: dict[str, list[float]] = {"exact": [], "fast": []}
        for seed in range(options.seeds):
            for reduction, found in accuracies.items():
                target = folder / f"{reduction}-{seed}"
                words: list[str | Path] = [
                    BIN / "distrib", "train", ROOT / "examples/digits/digits.yaml", "--set",
                    f"data.dataset={folder / 'dataset'}", "--set", f"train.reduction={reduction}", "--set",
                    f"seed={seed}", "--run", target, "--json",
                ]
                for override in options.overrides:
                    words += ["--set", override]
                run(BIN / "launch", "run", ROOT / "cluster_configs/dev.yaml", "--", *words)
                report = run(BIN / "distrib", "evaluate", target, "--split", "test", "--bootstrap", "0", "--json")
                found.append(report["accuracy"])
                note(f"seed {seed}, {reduction}: {report['accuracy']:.4f}")
        show("| sums | " + " | ".join(f"seed {seed}" for seed in range(options.seeds)) + " | mean | spread |")
        show("|---|" + "---|" * (options.seeds + 2))
        for reduction, found in accuracies.items():
            spread = statistics.stdev(found) if len(found) > 1 else 0.0
            show(f"| {reduction} | " + " | ".join(f"{a:.3f}" for a in found)
                 + f" | {statistics.mean(found):.4f} | {spread:.4f} |")


if __name__ == "__main__":
    main()
