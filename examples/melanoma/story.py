"""The whole story on generated lesions, by the public commands only: prepare, train, tune, ensemble, retrain, report.

    python examples/melanoma/story.py [OUT] [--images 8000]

Two of a hundred pictures are melanomas, and every patient has several pictures. On the way a leak and a regression are
planted, and must be caught: a patient in two splits, a model that has seen test patients, and a worse model. Everything
goes into a new numbered folder of OUT (story-output by default); summary.json has the numbers. Ends with exit code 1 if
something planted is not caught, or with the code of a command that fails. A score on generated pictures says that the
system works; it says nothing of real skin.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from lesions import write_isic2020
from rich.console import Console
from rich.table import Table

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "digits"))
from walk import CommandError, Walk, new_folder  # noqa: E402

EXPERIMENT = HERE / "isic2020-small.yaml"
STUDY = HERE / "study.yaml"
CLUSTER = HERE.parents[1] / "cluster_configs" / "dev.yaml"
COLUMNS = ("--image-column", "image_name", "--label-column", "target", "--group-column", "patient_id")
KEPT = ("--keep-column", "age_approx", "--keep-column", "sex")
SPLIT = ("--split", "0.6/0.2/0.2", "--resize", "72")
TABLE = "ISIC_2020_Training_GroundTruth.csv"
METRICS = {"auroc": "AUROC", "partial_auroc": "partial AUROC above TPR 0.8",
           "sensitivity_at_specificity": "sensitivity at specificity 0.95", "average_precision": "average precision"}

Rows = list[dict[str, str]]


def write_table(path: Path, rows: Rows) -> Path:
    """A labels file with these rows."""
    with path.open("w", newline="", encoding="ascii") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def by_patient(rows: Rows, share: float) -> tuple[Rows, Rows]:
    """The pictures of about this share of the patients, and of the others."""
    patients = sorted({row["patient_id"] for row in rows})
    random.Random(0).shuffle(patients)
    first = set(patients[:round(share * len(patients))])
    return [row for row in rows if row["patient_id"] in first], [row for row in rows if row["patient_id"] not in first]


def with_a_torn_patient(rows: Rows) -> Rows:
    """Rows with a split of their own, patient by patient, but for one picture of one patient."""
    held_out, training = by_patient(rows, 0.4)
    test, validation = by_patient(held_out, 0.5)
    torn = [{**row, "split": split} for split, part in (("train", training), ("val", validation), ("test", test))
            for row in part]
    counts = Counter(row["patient_id"] for row in test)
    next(row for row in torn if counts[row["patient_id"]] > 1)["split"] = "train"
    return torn


class Story:
    """The folder of one walk, and its commands."""

    def __init__(self, folder: Path, console: Console) -> None:
        self.folder, self.walk, self.console = folder, Walk(console), console
        self.pictures = folder / "pictures"
        self.summary: dict[str, Any] = {}

    def path(self, name: str) -> str:
        return str(self.folder / name)

    def data(self, name: str) -> str:
        """A setting that names a dataset. JSON is YAML: so quoted, any path stays a string."""
        return f"data.dataset={json.dumps(self.path(name))}"

    def tell(self, text: str) -> None:
        self.console.print(f"\n{text}", style="bold", highlight=False)

    def prepare(self, images: int) -> None:
        """Draw the pictures; a torn patient is refused; then the dataset."""
        self.tell(f"{images} pictures, 2% melanomas, several of each patient")
        self.walk.timed("draw", lambda: write_isic2020(self.pictures, images, jobs=2, max_side=160, prevalence=0.02))
        with (self.pictures / TABLE).open(encoding="ascii") as file:
            rows = list(csv.DictReader(file))
        first, later = by_patient(rows, 0.75)
        self.tell("Planted: one patient's pictures in two splits")
        torn = write_table(self.folder / "torn.csv", with_a_torn_patient(first))
        self.summary["leak_in_the_table"] = self.walk.refused("refuse a torn patient", 2, *self.taken_in(
            "prepare", "--labels", str(torn), "--split-column", "split", "--resize", "72", "--out", self.path("torn")))
        write_table(self.folder / "first.csv", first)
        write_table(self.folder / "later.csv", later)
        self.summary["dataset"] = self.walk.run("prepare", *self.taken_in(
            "prepare", "--labels", self.path("first.csv"), *SPLIT, "--out", self.path("dataset")))

    def taken_in(self, verb: str, *options: str, dataset: tuple[str, ...] = ()) -> tuple[str, ...]:
        """A command that takes pictures in: prepare, or update with a dataset."""
        kept = KEPT if verb == "prepare" else ()
        return ("distrib", verb, *dataset, str(self.pictures / "train"), *COLUMNS, *kept, *options, "--json")

    def train(self, name: str, run: str, dataset: str, *words: str, experiment: str | Path = EXPERIMENT) -> None:
        """Train on two ranks."""
        self.summary[run] = self.walk.run(
            name, "launch", "run", str(CLUSTER), "--", "distrib", "train", str(experiment), "--set", self.data(dataset),
            *words, "--run", self.path(run), "--json")

    def evaluate(self, target: str, dataset: str) -> dict[str, Any]:
        """The final judgement, on the test split."""
        report: dict[str, Any] = self.walk.run(f"evaluate {target}", "distrib", "evaluate", self.path(target), "--data",
                                               self.path(dataset), "--split", "test", "--json")
        self.summary[f"test of {target}"] = report
        return report

    def promote(self, bundle: str, dataset: str, *words: str) -> tuple[str, ...]:
        """The command that compares a bundle with the current one, and lets it in."""
        return ("distrib", "promote", self.path(bundle), "--registry", self.path("registry"), "--data",
                self.path(dataset), *words, "--json")


def tell_story(out: Path, images: int, console: Console) -> dict[str, Any]:
    """Walk the whole way; returns the summary. Raises CommandError, OSError."""
    story = Story(new_folder(out), console)
    story.prepare(images)

    story.tell("One model, by the experiment as it stands")
    story.train("train", "plain", "dataset")
    story.evaluate("plain", "dataset")

    story.tell("A study of its learning rate, weight decay, dropout and crops, judged on validation")
    story.summary["study"] = story.walk.run("tune", "distrib", "tune", str(STUDY), "--set", story.data("dataset"),
                                            "--folder", story.path("study"), "--json")
    best = story.folder / "study" / "best.yaml"

    story.tell("The best one, in three folds by patient, as one bundle")
    story.summary["ensemble"] = story.walk.run(
        "ensemble", "distrib", "ensemble", str(best), "--folds", "3", "--tta", "flips", "--run", story.path("folds"),
        "--out", story.path("ensemble"), "--json")
    story.evaluate("ensemble", "dataset")
    story.walk.run("promote", *story.promote("ensemble", "dataset"))

    story.tell("Planted: a worse model; and one that has seen patients of the test")
    story.train("train a worse one", "worse", "dataset", "--set", "train.epochs=1", "--set", "train.lr=1e-5")
    story.walk.run("export it", "distrib", "export", story.path("worse"), "--out", story.path("worse-bundle"), "--json")
    story.summary["regression"] = story.walk.refused("refuse the worse one", 1,
                                                     *story.promote("worse-bundle", "dataset"))
    story.walk.run("prepare with another split", *story.taken_in(
        "prepare", "--labels", story.path("first.csv"), *SPLIT, "--seed", "1", "--out", story.path("other-split")))
    story.train("train on test patients", "leaky", "other-split", "--set", "train.epochs=1")
    story.walk.run("export that", "distrib", "export", story.path("leaky"), "--out", story.path("leaky-bundle"),
                   "--json")
    story.summary["leak"] = story.walk.refused(
        "refuse the leak", 2, *story.promote("leaky-bundle", "dataset", "--trained-on", story.path("other-split")))

    story.tell("New patients arrive: a new version of the dataset, and a warm start from the first model")
    story.summary["update"] = story.walk.run("update", *story.taken_in(
        "update", "--labels", story.path("later.csv"), "--out", story.path("dataset-2"),
        dataset=(story.path("dataset"),)))
    story.train("retrain", "retrained", "dataset-2", "--from", story.path("plain"), "--set", "data.new_ratio=0.5",
                "--set", "train.epochs=3", experiment=best)
    story.evaluate("retrained", "dataset-2")
    story.walk.run("export", "distrib", "export", story.path("retrained"), "--out", story.path("retrained-bundle"),
                   "--json")

    story.tell("What people read, and what a colleague's picture gets")
    story.summary["report"] = story.walk.run(
        "report", "distrib", "report", story.path("ensemble"), story.path("retrained-bundle"), "--data",
        story.path("dataset"), "--split", "test", "--subgroup", "age_approx=40,60", "--subgroup", "sex", "--out",
        story.path("report"), "--json")
    pictures = sorted((story.pictures / "train").iterdir())[:3]
    story.summary["predictions"] = story.walk.run("predict", "distrib", "predict", story.path("registry/current"),
                                                  *map(str, pictures), "--json")
    story.summary["seconds"] = story.walk.seconds
    (story.folder / "summary.json").write_text(json.dumps(story.summary, indent=2) + "\n", encoding="utf-8")
    show(story, console)
    return story.summary


def show(story: Story, console: Console) -> None:
    """What came out, as tables."""
    tested = {name.removeprefix("test of "): report for name, report in story.summary.items()
              if name.startswith("test of ")}
    table = Table(title="On the test split, with 95% intervals drawn by patient", title_justify="left")
    table.add_column("")
    for name in tested:
        table.add_column(name, justify="right")
    for metric, words in METRICS.items():
        cells = []
        for report in tested.values():
            one = report["intervals"]["metrics"][metric]
            cells.append(f"{report[metric]:.3f} ({one['low']:.3f} to {one['high']:.3f})")
        table.add_row(words, *cells)
    console.print(table)
    table = Table(title="Where the time went", title_justify="left")
    table.add_column("")
    table.add_column("seconds", justify="right")
    for name, took in story.walk.seconds.items():
        table.add_row(name, f"{took:.1f}")
    table.add_section()
    table.add_row("all", f"{sum(story.walk.seconds.values()):.1f}", style="bold")
    console.print(table)
    for what in ("leak_in_the_table", "regression", "leak"):
        console.print(f"caught: {story.summary[what].splitlines()[-1]}", markup=False, highlight=False, soft_wrap=True)
    console.print(f"The report: {story.summary['report']['page']}", highlight=False, soft_wrap=True)


def main() -> int:
    parser = argparse.ArgumentParser(description="The whole story, on generated lesions.")
    parser.add_argument("out", type=Path, nargs="?", default=Path("story-output"), help="folder [story-output]")
    parser.add_argument("--images", type=int, default=8000, help="how many pictures are drawn [8000]")
    wanted = parser.parse_args()
    try:
        tell_story(wanted.out, wanted.images, Console())
    except (CommandError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return max(error.code, 1) if isinstance(error, CommandError) else 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
