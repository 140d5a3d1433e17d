"""Retraining beside training anew, on the digits: accuracy on one frozen test, and training time.

    python benchmarks/retrain.py [--mode images|classes] [--seeds 3] [--epochs 6] [--out FOLDER] [--set KEY=VALUE ...]

A model (*before*) is trained on half of the images, or on the digits 0 to 4. The dataset is updated with the rest, and
three models are trained on all of it: *full* from nothing by the example's own recipe, *retrained* from *before* for
fewer passes with half of the draws from the new images, and *short* from nothing for as many passes as *retrained*. All
are judged on the same test images. Uses the public commands only, one rank on one core; seconds are the processor's.
With --out, what was measured there before is not measured again. --set overrides keys of the retraining alone.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from timing import note, one_core, show

ROOT = Path(__file__).resolve().parent.parent
MODELS = ("before", "full", "retrained", "short")
PREPARED = ("--image-column", "image", "--label-column", "label", "--json")
RETRAINING = ("data.new_ratio=0.5", "train.warmup_epochs=0.5")


def run(*words: str | Path) -> Any:
    """A command's JSON."""
    done = subprocess.run([sys.executable, "-m", *(str(word) for word in words)], capture_output=True, text=True,
                          check=False)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, words))}\n{done.stderr}")
    return json.loads(done.stdout)


def children_s() -> float:
    """Processor seconds of all commands so far: on one core that others disturb, the fairer clock."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def make_data(folder: Path, mode: str) -> None:
    """The digits, and the dataset in two versions."""
    subprocess.run([sys.executable, ROOT / "examples/digits/make_digits.py", folder / "digits"], check=True)
    rows = list(csv.DictReader((folder / "digits/labels.csv").open(encoding="utf-8")))
    random.Random(0).shuffle(rows)
    old = [row for row in rows if int(row["label"]) < 5] if mode == "classes" else rows[:len(rows) // 2]
    known = {row["image"] for row in old}
    for name, some in (("old", old), ("new", [row for row in rows if row["image"] not in known])):
        with (folder / f"{name}.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, ["image", "label"], extrasaction="ignore")
            writer.writeheader()
            writer.writerows(some)
    images = folder / "digits/images"
    run("distrib", "prepare", images, "--labels", folder / "old.csv", *PREPARED, "--out", folder / "v1",
        "--split", "0.6/0.1/0.3")
    extra = ("--new-classes", "--test", "grow") if mode == "classes" else ()
    run("distrib", "update", folder / "v1", images, "--labels", folder / "new.csv", *PREPARED, *extra,
        "--out", folder / "v2")


def measure(folder: Path, model: str, seed: int, epochs: int, changes: list[str]) -> dict[str, float]:
    """Train and evaluate once: accuracy, steps, and processor seconds of the whole command."""
    kept, target = folder / f"{model}-{seed}.json", folder / f"{model}-{seed}"
    if kept.exists():
        return dict(json.loads(kept.read_text()))
    overrides = [f"data.dataset={folder / ('v1' if model == 'before' else 'v2')}", f"seed={seed}"]
    if model in ("retrained", "short"):
        overrides.append(f"train.epochs={epochs}")
    words: list[str | Path] = ["distrib", "train", ROOT / "examples/digits/digits.yaml", "--run", target, "--json"]
    if model == "retrained":
        words += ["--from", folder / f"before-{seed}"]
        overrides += changes
    for override in overrides:
        words += ["--set", override]
    began = children_s()
    trained = run(*words)
    seconds = children_s() - began
    test = folder / "v1" if model == "before" else folder / "v2"
    report = run("distrib", "evaluate", target, "--data", test, "--bootstrap", "0", "--json")
    result = {"accuracy": report["accuracy"], "steps": trained["step"], "seconds": seconds,
              "num_samples": report["num_samples"]}
    kept.write_text(json.dumps(result))
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mode", choices=("images", "classes"), default="images")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    one_core()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.out or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "v2").exists():
            make_data(folder, options.mode)
        found: dict[str, list[dict[str, float]]] = {model: [] for model in MODELS}
        for seed in range(options.seeds):
            for model in MODELS:
                found[model].append(measure(folder, model, seed, options.epochs, [*RETRAINING, *options.overrides]))
                note(f"seed {seed}, {model}: {found[model][-1]}")
        full = statistics.mean(one["seconds"] for one in found["full"])
        seeds = " | ".join(f"seed {seed}" for seed in range(options.seeds))
        show(f"| {options.mode} | {seeds} | mean | steps | seconds | of full's |")
        show("|---|" + "---|" * (options.seeds + 4))
        for model, results in found.items():
            accuracies, seconds = [one["accuracy"] for one in results], statistics.mean(r["seconds"] for r in results)
            show(f"| {model} | " + " | ".join(f"{accuracy:.4f}" for accuracy in accuracies)
                 + f" | {statistics.mean(accuracies):.4f} | {results[0]['steps']:.0f} | {seconds:.1f} "
                 f"| {seconds / full:.2f} |")


if __name__ == "__main__":
    main()
