"""An ensemble of k folds beside its members, on one test split of the digits, with paired intervals.

    python benchmarks/ensemble.py [--folds 5] [--seeds 1] [--split 0.25/0.05/0.7] [--out FOLDER] [--set KEY=VALUE ...]

The training part is small and the test large, so that the ceiling does not hide the difference; --split changes that.
Members and ensemble are trained and combined by `distrib ensemble --folds`, and every one is judged by `distrib
evaluate --split test`. The interval of each difference is paired: ensemble less member, on the same resamples of the
test images. The best member is the one that is best on the test, the hardest to beat. With --out, what is finished
there is not done again.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from digits import EXPERIMENT, ROOT
from timing import note, show

from distrib.config import EvaluateConfig
from distrib.registry.compare import Answers, compare
from distrib.registry.entry import Compared

RESAMPLES = 2000


def run(*words: str | Path) -> Any:
    """A command's JSON; its progress goes to stderr."""
    done = subprocess.run([sys.executable, "-m", "distrib", *map(str, words), "--json"], stdout=subprocess.PIPE,
                          text=True, check=False)
    if done.returncode:
        sys.exit(f"`distrib {' '.join(map(str, words))}` ended with {done.returncode}")
    return json.loads(done.stdout)


def make_data(folder: Path, split: str) -> Path:
    """The digits, prepared with this split."""
    dataset = folder / "dataset"
    if not dataset.exists():
        subprocess.run([sys.executable, ROOT / "examples/digits/make_digits.py", folder / "digits"], check=True,
                       stdout=subprocess.DEVNULL)
        run("prepare", folder / "digits/images", "--labels", folder / "digits/labels.csv", "--image-column", "image",
            "--label-column", "label", "--split", split, "--out", dataset)
    return dataset


def answers(target: Path, csv_path: Path) -> tuple[Answers, list[str], list[str], list[str]]:
    """(answers, classes, each sample's class, each sample's group) on the test split."""
    if not csv_path.exists():
        run("evaluate", target, "--split", "test", "--bootstrap", "0", "--predictions", csv_path)
    with csv_path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    classes = [name.removeprefix("p_") for name in rows[0] if name.startswith("p_")]
    probabilities_NK = np.array([[float(row[f"p_{name}"]) for name in classes] for row in rows])
    logits_NK = np.log(np.maximum(probabilities_NK, 1e-30)).astype(np.float32)
    return Answers(logits_NK, None), classes, [row["class"] for row in rows], [row["group"] for row in rows]


def of_seed(folder: Path, dataset: Path, seed: int, folds: int, overrides: list[str]) -> None:
    """Train, combine, judge and show one seed."""
    root, bundle = folder / f"folds-{seed}", folder / f"bundle-{seed}"
    if not bundle.exists():
        words: list[str | Path] = ["ensemble", EXPERIMENT, "--folds", str(folds), "--run", root, "--out", bundle,
                                   "--format", "onnx"]
        for override in (f"data.dataset={dataset}", f"seed={seed}", *overrides):
            words += ["--set", override]
        run(*words)
    mine, classes, truth, groups = answers(bundle, folder / f"ensemble-{seed}.csv")
    labels_N = np.array([classes.index(name) for name in truth])

    def judged(current: Answers | None) -> dict[str, Compared]:
        return compare(mine, current, labels_N, groups, classes, EvaluateConfig(), RESAMPLES)

    show(f"\nSeed {seed}, {len(truth)} test images; in brackets 95% intervals, those of differences paired\n")
    show("| | accuracy | ensemble less member | log loss | ensemble less member |")
    show("|---|---|---|---|---|")
    rows = []
    for fold in range(folds):
        theirs = answers(root / f"fold-{fold}", folder / f"member-{seed}-{fold}.csv")[0]
        alone = compare(theirs, None, labels_N, groups, classes, EvaluateConfig(), RESAMPLES)
        rows.append((alone["accuracy"].candidate or 0.0, f"fold {fold}", alone, judged(theirs)))
    best = max(rows, key=lambda row: row[0])[1]
    for _, name, alone, both in rows:
        show(f"| {name}{' (best)' if name == best else ''} | " + " | ".join(
            f"{_value(alone[metric])} | {_difference(both[metric])}" for metric in ("accuracy", "loss")) + " |")
    whole = judged(None)
    show(f"| ensemble | {_value(whole['accuracy'])} | | {_value(whole['loss'])} | |")


def _value(one: Compared) -> str:
    return f"{one.candidate:.4f} ({one.low:.4f} to {one.high:.4f})"


def _difference(one: Compared) -> str:
    return f"{one.difference:+.4f} ({one.low:+.4f} to {one.high:+.4f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--split", default="0.25/0.05/0.7")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.out or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        dataset = make_data(folder, options.split)
        for seed in range(options.seeds):
            note(f"seed {seed}")
            of_seed(folder, dataset, seed, options.folds, options.overrides)


if __name__ == "__main__":
    main()
