"""From raw files to a checked model: 5,000 real handwritten digits, by the public commands only.

    python examples/digits/demo.py [OUT]

Everything goes into a new numbered folder of OUT (demo-output by default). Ends with exit code 1 if the
model's accuracy on the test split is below 0.98, or with the code of a command that fails.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from forest import forest_predictions
from make_digits import write_digits
from picture import Shown, choose, contact_sheet, terminal_lines
from rich.console import Console
from rich.table import Table
from walk import CommandError, Walk, new_folder

LEAST_ACCURACY = 0.98
_HERE = Path(__file__).resolve().parent
_EXPERIMENT = _HERE / "digits.yaml"
_CLUSTER = _HERE.parents[1] / "cluster_configs" / "dev.yaml"

@dataclass(frozen=True)
class Split:
    """Images and labels of one split, as the dataset's manifest has them."""

    images: list[Path]
    labels: list[str]


def read_split(dataset: Path, images: Path, split: str) -> Split:
    """The original image files of a split."""
    manifest = json.loads((dataset / "dataset.json").read_text(encoding="utf-8"))
    indexes = [shard["index"] for shard in manifest["shards"] if shard["split"] == split]
    return Split([images / f"{key}.png" for index in indexes for key in index["key"]],
                 [manifest["classes"][label] for index in indexes for label in index["label"]])


def interval(right: Sequence[bool], resamples: int = 2000) -> tuple[float, float]:
    """95% bootstrap interval of the share of True."""
    drawn = np.random.default_rng(0).choice(np.asarray(right, np.float64), (resamples, len(right)))
    low, high = np.quantile(drawn.mean(axis=1), [0.025, 0.975])
    return float(low), float(high)


def time_in_training(run: Path, whole_s: float) -> dict[str, float]:
    """Where training's seconds went, on rank 0, from the run's metrics.jsonl."""
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    steps = [record for record in records if record["event"] == "step"]
    parts = {name: sum(step[key] for step in steps) for name, key in (
        ("data wait", "data_s"), ("compute", "compute_s"), ("communication", "communication_s"),
        ("rest of the steps", "rest_s"))}
    parts["validation"] = sum(record["validation"]["seconds"] for record in records if record["event"] == "validation")
    parts["start, checkpoints, end"] = max(0.0, whole_s - sum(parts.values()))
    return parts


def demo(out: Path, console: Console) -> dict[str, Any]:
    """Walk the whole way; returns the summary. Raises CommandError, OSError."""
    walk = Walk(console)
    folder = new_folder(out)
    raw, dataset, run, bundle = (folder / name for name in ("digits", "dataset", "run", "bundle"))
    count = walk.timed("write the raw files", lambda: write_digits(raw))
    console.print(f"{count} real handwritten digits in {raw}", highlight=False)
    walk.run("prepare", "distrib", "prepare", str(raw / "images"), "--labels", str(raw / "labels.csv"),
             "--image-column", "image", "--label-column", "label", "--out", str(dataset), "--json")
    # JSON is YAML: so quoted, any path stays a string.
    trained = walk.run("train", "launch", "run", str(_CLUSTER), "--", "distrib", "train", str(_EXPERIMENT),
                       "--set", f"data.dataset={json.dumps(str(dataset))}", "--run", str(run), "--json")
    report = walk.run("evaluate", "distrib", "evaluate", str(run), "--split", "test", "--json")
    walk.run("export", "distrib", "export", str(run), "--out", str(bundle), "--json")
    test = read_split(dataset, raw / "images", "test")
    predictions = walk.run("predict", "distrib", "predict", str(bundle), "--json", *map(str, test.images), shown=6)
    train = read_split(dataset, raw / "images", "train")
    cores = len(os.sched_getaffinity(0))
    console.print("\nFor comparison: a random forest on hand-made features, on the same split ...", style="bold cyan")
    by_forest = walk.timed("random forest", lambda: forest_predictions(train.images, train.labels, test.images,
                                                                       jobs=cores))
    shown = [Shown(image, truth, one["label"], one["probabilities"][one["label"]])
             for image, truth, one in zip(test.images, test.labels, predictions, strict=True)]
    forest_right = [label == truth for label, truth in zip(by_forest, test.labels, strict=True)]
    bundle_right = [one.right for one in shown]
    summary = {
        "accuracy": report["accuracy"],
        "accuracy_interval": [report["intervals"]["metrics"]["accuracy"][end] for end in ("low", "high")],
        "accuracy_of_bundle": float(np.mean(bundle_right)),
        "accuracy_of_bundle_interval": interval(bundle_right),
        "accuracy_of_forest": float(np.mean(forest_right)),
        "accuracy_of_forest_interval": interval(forest_right),
        "num_train": len(train.images), "num_test": len(test.images),
        "weights_sha256": trained["weights_sha256"], "world_size": trained["world_size"],
        "seconds": walk.seconds, "seconds_in_training": time_in_training(run, walk.seconds["train"]),
        "parity": json.loads((bundle / "bundle.json").read_text(encoding="utf-8"))["parity"],
        "picture": str(folder / "predictions.png"),
    }
    (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    contact_sheet(choose(shown, 40), folder / "predictions.png")
    show(summary, shown, console)
    return summary


def show(summary: dict[str, Any], shown: Sequence[Shown], console: Console) -> None:
    """What came out, as tables and a picture."""
    console.print()
    table = Table(title=f"Accuracy on {summary['num_test']} held-out digits, {summary['num_train']} to learn from",
                  title_justify="left")
    for column in ("", "accuracy", "95% interval", "seconds"):
        table.add_column(column, justify="left" if not column else "right")
    seconds = summary["seconds"]
    for name, key, took in (
        (f"small_cnn, trained on {summary['world_size']} ranks", "accuracy", seconds["train"]),
        ("  its bundle, on the raw files", "accuracy_of_bundle", seconds["predict"]),
        ("random forest on hand-made features", "accuracy_of_forest", seconds["random forest"]),
    ):
        low, high = summary[f"{key}_interval"]
        table.add_row(name, f"{summary[key]:.3f}", f"{low:.3f} to {high:.3f}", f"{took:.1f}")
    console.print(table)

    table = Table(title="Where the time went", title_justify="left")
    for column in ("", "seconds"):
        table.add_column(column, justify="left" if not column else "right")
    for name, took in seconds.items():
        table.add_row(name, f"{took:.1f}")
        if name == "train":
            for part, part_s in summary["seconds_in_training"].items():
                table.add_row(f"    {part}", f"{part_s:.1f}", style="dim")
    table.add_section()
    table.add_row("all", f"{sum(seconds.values()):.1f}", style="bold")
    console.print(table)

    parity = summary["parity"]
    table = Table(title="Parity of the bundle's formats with the trained model", title_justify="left",
                  caption=f"{parity['num_samples']} {parity['split']} samples; tolerance {parity['tolerance']:g}",
                  caption_justify="left")
    for column in ("format", "largest difference of a probability", "labels equal"):
        table.add_column(column, justify="left" if column == "format" else "right")
    for name, one in parity["formats"].items():
        table.add_row(name, f"{one['max_probability_difference']:.1e}",
                      f"{one['labels_equal']} of {parity['num_samples']}")
    console.print(table)
    console.print()
    for line in terminal_lines(choose(shown, 10), min(console.width, 78)):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    console.print(f"More predictions, the wrong ones first: {summary['picture']}", highlight=False, soft_wrap=True)


def main() -> int:
    parser = argparse.ArgumentParser(description="Walk from raw files to a checked model, on real digits.")
    parser.add_argument("out", type=Path, nargs="?", default=Path("demo-output"), help="folder [demo-output]")
    try:
        summary = demo(parser.parse_args().out, Console())
    except (CommandError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return max(error.code, 1) if isinstance(error, CommandError) else 2
    if summary["accuracy"] < LEAST_ACCURACY:
        print(f"error: the accuracy on the test split is {summary['accuracy']:.4f}, below {LEAST_ACCURACY}; "
              "something is broken", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
