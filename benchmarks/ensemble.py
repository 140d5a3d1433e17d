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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from digits import EXPERIMENT, ROOT
from timing import note, show

from distrib.decision import log_softmax
from distrib.intervals import percentile_interval, resampled
from distrib.metrics import Floats, Labels

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


@dataclass(frozen=True)
class Judged:
    """One model on the test split: values, and the same resamples for all models."""

    values: dict[str, float]
    draws: dict[str, Floats]

    def shown(self, metric: str) -> str:
        """Value and interval."""
        interval = percentile_interval(self.draws[metric])
        return f"{self.values[metric]:.4f} ({interval['low']:.4f} to {interval['high']:.4f})"

    def less(self, other: Judged, metric: str) -> str:
        """Difference and paired interval."""
        interval = percentile_interval(self.draws[metric] - other.draws[metric])
        return f"{self.values[metric] - other.values[metric]:+.4f} ({interval['low']:+.4f} to {interval['high']:+.4f})"


def judge(target: Path, predictions: Path) -> Judged:
    """Evaluate on the test split."""
    if not predictions.exists():
        run("evaluate", target, "--split", "test", "--bootstrap", "0", "--predictions", predictions)
    with predictions.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    classes = [name.removeprefix("p_") for name in rows[0] if name.startswith("p_")]
    probabilities_NK = np.array([[float(row[f"p_{name}"]) for name in classes] for row in rows])
    labels_N = np.array([classes.index(row["class"]) for row in rows])
    return Judged(*resampled_metrics(np.log(np.maximum(probabilities_NK, 1e-30)), labels_N,
                                     [row["group"] for row in rows]))


def resampled_metrics(logits_NK: Floats, labels_N: Labels,
                      groups: list[str]) -> tuple[dict[str, float], dict[str, Floats]]:
    """Accuracy and log loss: (values, values of every resample of the groups)."""
    terms = {"accuracy": (logits_NK.argmax(axis=1) == labels_N).astype(np.float64),
             "loss": -log_softmax(logits_NK)[np.arange(len(labels_N)), labels_N]}
    parts: dict[str, list[Floats]] = {name: [] for name in terms}
    for weights_BN in resampled(groups, RESAMPLES):
        for name, terms_N in terms.items():
            parts[name].append(weights_BN @ terms_N / weights_BN.sum(axis=1))
    return ({name: float(terms_N.mean()) for name, terms_N in terms.items()},
            {name: np.concatenate(of_chunks) for name, of_chunks in parts.items()})


def of_seed(folder: Path, dataset: Path, seed: int, folds: int, overrides: list[str]) -> None:
    """Train, combine, judge and show one seed."""
    root, bundle = folder / f"folds-{seed}", folder / f"bundle-{seed}"
    if not bundle.exists():
        words: list[str | Path] = ["ensemble", EXPERIMENT, "--folds", str(folds), "--run", root, "--out", bundle,
                                   "--format", "onnx"]
        for override in (f"data.dataset={dataset}", f"seed={seed}", *overrides):
            words += ["--set", override]
        run(*words)
    whole = judge(bundle, folder / f"ensemble-{seed}.csv")
    members = [judge(root / f"fold-{fold}", folder / f"member-{seed}-{fold}.csv") for fold in range(folds)]
    best = max(range(folds), key=lambda fold: members[fold].values["accuracy"])
    show(f"\nSeed {seed}; in brackets 95% intervals, those of differences paired\n")
    show("| | accuracy | ensemble less member | log loss | ensemble less member |")
    show("|---|---|---|---|---|")
    for fold, member in enumerate(members):
        show(f"| fold {fold}{' (best)' if fold == best else ''} | " + " | ".join(
            f"{member.shown(metric)} | {whole.less(member, metric)}" for metric in ("accuracy", "loss")) + " |")
    show(f"| ensemble | {whole.shown('accuracy')} | | {whole.shown('loss')} | |")


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
