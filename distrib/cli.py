"""The command line: `distrib VERB`. Verbs import what they need when they run, so that --help is quick."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Annotated, NoReturn

import typer

from distrib.entry import put, run_app, tell
from distrib.errors import printable
from distrib.verbs.answers import Json, answer
from distrib.verbs.bench import bench
from distrib.verbs.ensemble import ensemble
from distrib.verbs.images import (
    GroupColumn,
    ImageColumn,
    KeepColumn,
    LabelColumn,
    Labels,
    OnBad,
    ShardMb,
    ShardSamples,
    Source,
    SplitColumn,
    Workers,
)
from distrib.verbs.promote import promote
from distrib.verbs.report import report
from distrib.verbs.serve import serve
from distrib.verbs.tune import tune
from distrib.verbs.update import update

app = typer.Typer(
    name="distrib", help="Train image classifiers on clusters of CPUs.", no_args_is_help=True, add_completion=False,
    rich_markup_mode=None, pretty_exceptions_enable=False, context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def group() -> None:
    """Train image classifiers on clusters of CPUs."""


@app.command()
def prepare(
    source: Source,
    out: Annotated[Path, typer.Option(help="The dataset's folder; must not exist yet.")],
    labels: Labels = None,
    image_column: ImageColumn = None,
    label_column: LabelColumn = None,
    group_column: GroupColumn = None,
    split: Annotated[str | None, typer.Option(help="Parts for train/val/test [0.8/0.1/0.1].")] = None,
    split_column: SplitColumn = None,
    keep_column: KeepColumn = None,
    resize: Annotated[int | None, typer.Option(help="Shrink the shorter side to this many pixels.")] = None,
    image_format: Annotated[str, typer.Option("--format", help="jpg, or png (lossless).")] = "jpg",
    quality: Annotated[int, typer.Option(help="JPEG quality of images that must be encoded anew.")] = 95,
    seed: Annotated[int, typer.Option(help="Seed of the split and of the order in the shards.")] = 0,
    on_bad: OnBad = "refuse",
    shard_samples: ShardSamples = 1000,
    shard_mb: ShardMb = 64.0,
    workers: Workers = None,
    as_json: Json = False,
) -> None:
    """Decode, check, split and pack images into a dataset of shards."""
    from distrib.data.prepare import run_prepare

    answer(run_prepare(
        source, out, labels=labels, image_column=image_column, label_column=label_column, group_column=group_column,
        split_column=split_column, split=split, resize=resize, image_format=image_format, quality=quality, seed=seed,
        on_bad=on_bad, shard_samples=shard_samples, shard_mb=shard_mb, workers=workers, kept_columns=keep_column or (),
    ), as_json)


@app.command()
def inspect(
    dataset: Annotated[Path, typer.Argument(help="A dataset's folder.")],
    verify: Annotated[bool, typer.Option(help="Read every shard and check all digests.")] = True,
    as_json: Json = False,
) -> None:
    """Show a dataset's classes by split, and verify every byte of it."""
    from distrib.data.inspect import run_inspect

    answer(run_inspect(dataset, verify=verify), as_json)


@app.command()
def adopt(
    folder: Annotated[Path, typer.Argument(help="A folder of WebDataset shards that others made.")],
    split: Annotated[list[str] | None, typer.Option(metavar="SPLIT=GLOB", help="Shards of a split [by names].")] = None,
    label_field: Annotated[str | None, typer.Option(help="Field of the samples' JSON that holds the label.")] = None,
    group_field: Annotated[str | None, typer.Option(help="Field of the samples' JSON that holds the group.")] = None,
    class_names: Annotated[Path | None, typer.Option(help="A text file of class names, one a line.")] = None,
    on_bad: Annotated[str, typer.Option(help="Samples that can not be used: refuse, or skip and record.")] = "refuse",
    workers: Workers = None,
    as_json: Json = False,
) -> None:
    """Index shards that others made, in place: check every image, and write dataset.json beside them."""
    from distrib.data.adopt import run_adopt

    answer(run_adopt(folder, splits=split or (), label_field=label_field, group_field=group_field,
                     class_names=class_names, on_bad=on_bad, workers=workers), as_json)


@app.command()
def train(
    experiment: Annotated[Path | None, typer.Argument(help="The experiment; left out, --run DIR goes on.")] = None,
    override: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE",
                                                       help="Override a key, such as train.lr=0.1.")] = None,
    run: Annotated[Path | None, typer.Option(help="The run's folder [runs/NAME]; an existing run goes on.")] = None,
    source: Annotated[Path | None, typer.Option("--from", metavar="RUN_OR_BUNDLE",
                                                help="Begin with the weights of this run or bundle.")] = None,
    join: Annotated[bool, typer.Option("--join", help="Become a further rank of the elastic run --run.")] = False,
    as_json: Json = False,
) -> None:
    """Train a model: one rank of a world, or a world of one."""
    from distrib.train.settle import settle
    from distrib.world import read_world

    world = read_world()
    settled = settle(experiment, override or [], run, world, source)
    from distrib.train.run import run_train  # takes seconds to import

    result = run_train(settled, world, tell, join=join or world.join)
    if result.pop("leads"):
        answer(result, as_json)
        how = "finished" if result["finished"] else "stopped, to go on later,"
        tell(f"{how} after step {result['step']}; weights {result['weights_sha256'][:16]}; run {result['run']}")
    if result["signal"]:
        raise typer.Exit(128 + result["signal"])


@app.command()
def evaluate(
    target: Annotated[Path, typer.Argument(metavar="RUN_OR_BUNDLE", help="A run's folder, or a bundle.")],
    data: Annotated[Path | None, typer.Option(help="Another dataset than the experiment's.")] = None,
    split: Annotated[str, typer.Option(help="train, val or test.")] = "test",
    runtime: Annotated[str | None, typer.Option(help="Of a bundle: one of its formats.")] = None,
    bootstrap: Annotated[int | None, typer.Option(help="Resamples for the intervals; 0 leaves them out.")] = None,
    predictions: Annotated[Path | None, typer.Option(help="Write a CSV of every sample's probabilities.")] = None,
    as_json: Json = False,
) -> None:
    """Judge a run's best checkpoint, or a bundle, on held-out images; over all ranks where there are several."""
    from distrib.evaluate import run_evaluate, show_report
    from distrib.world import read_world

    world = read_world()
    if world.size == 1:
        report = run_evaluate(target, data=data, split=split, runtime=runtime, bootstrap=bootstrap,
                              predictions=predictions, tell=tell)
    else:
        from distrib.comm.group import Group

        with Group(world) as ranks:
            report = run_evaluate(target, data=data, split=split, runtime=runtime, world=world,
                                  sum_over_ranks=ranks.sum_over_ranks, bootstrap=bootstrap, predictions=predictions,
                                  tell=tell if world.is_first else lambda _: None)
    if world.is_first:
        answer(report, as_json)
        if not as_json:
            show_report(report)


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="A run's folder.")],
    out: Annotated[Path, typer.Option(help="The bundle's folder; must not exist yet.")],
    formats: Annotated[str, typer.Option("--format", help="Formats, separated by commas.")] = "torch,onnx,openvino",
    tolerance: Annotated[float, typer.Option(help="Largest difference of a probability between formats.")] = 1e-3,
    samples: Annotated[int, typer.Option(help="Validation images that every format is checked with.")] = 64,
    max_drop: Annotated[float, typer.Option(help="Of int8 and bf16: most that evaluate.metric may fall.")] = 0.005,
    calibration: Annotated[int, typer.Option(help="Of int8: training images that ranges come from.")] = 300,
    as_json: Json = False,
) -> None:
    """Write an inference bundle, if every format of it gives the model's own answers (int8, bf16: about so)."""
    from distrib.export.wishes import check_wishes

    names = [name.strip() for name in formats.split(",") if name.strip()]
    check_wishes(run, out, names, tolerance, samples, max_drop, calibration)
    from distrib.export.run import run_export  # takes seconds to import

    answer(run_export(run, out=out, formats=names, tolerance=tolerance, num_samples=samples, max_drop=max_drop,
                      calibration=calibration, tell=tell), as_json)


@app.command()
def predict(
    bundle: Annotated[Path, typer.Argument(help="A bundle's folder.")],
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Image files, or folders of them.")],
    tta: Annotated[str, typer.Option(help="Test-time augmentation: none, hflip or flips.")] = "none",
    runtime: Annotated[str | None, typer.Option(help="One of the bundle's formats.")] = None,
    as_json: Json = False,
) -> None:
    """Predict the class of images, with a bundle and nothing else of the training."""
    from distrib.predict import failure, run_predict

    predictions = run_predict(bundle, images, tta=tta, runtime=runtime, tell=tell)
    answer(predictions, as_json)
    if not as_json:
        for entry in predictions:
            if entry["label"] is not None:
                probability = entry["probabilities"][entry["label"]]
                put(printable(f"{entry['image']}: {entry['label']} ({probability:.4f})"))
    if (error := failure(predictions)) is not None:
        raise error


@app.command()
def verify(
    run: Annotated[Path, typer.Argument(metavar="RUN_A", help="A run's folder.")],
    other: Annotated[Path | None, typer.Argument(metavar="RUN_B", help="Another run's folder.")] = None,
    replay: Annotated[bool, typer.Option("--replay", help="Train the run anew, and compare with that.")] = False,
    steps: Annotated[int | None, typer.Option(help="Of a replay: steps to train [all].")] = None,
    keep: Annotated[Path | None, typer.Option(help="Of a replay: its folder, which is kept.")] = None,
    data: Annotated[Path | None, typer.Option(help="Of a replay: where the same dataset lies now.")] = None,
    as_json: Json = False,
) -> None:
    """Say whether two runs are the same model, bit for bit (exit code 0), or since when and why not (1)."""
    from distrib.verify.wishes import check_wishes
    from distrib.world import read_world

    check_wishes(run, other, replay, steps, keep, data, read_world())
    from distrib.verify.run import run_replay, run_verify  # takes seconds to import
    from distrib.verify.words import show_verdict

    if other is not None:
        verdict = run_verify(run, other, tell)
    else:
        verdict = run_replay(run, steps=steps, keep=keep, data=data, tell=tell)
    answer(verdict, as_json)
    if not as_json:
        show_verdict(verdict, put)
    if not verdict["same"]:
        raise typer.Exit(1)


@app.command()
def backends(
    build: Annotated[str | None, typer.Option(metavar="NAME", help="First build and install this one.")] = None,
    as_json: Json = False,
) -> None:
    """List the communication backends: which can be used, and what the others lack."""
    from distrib.comm.show import run_backends

    rows = run_backends(build, tell)
    answer(rows, as_json)
    if not as_json:
        for row in rows:
            put(f"{row['backend']:16}{row['version'] if row['available'] else 'missing: ' + row['missing']}")


app.command()(update)
app.command()(promote)
app.command()(bench)
app.command()(ensemble)
app.command()(report)
app.command()(serve)
app.command()(tune)


def _terminate(number: int, _: FrameType | None) -> NoReturn:
    """End by way of every `finally`, so that unfinished folders are removed; `train` has a way of its own."""
    sys.exit(128 + number)


def main() -> int:
    """Entry point."""
    signal.signal(signal.SIGTERM, _terminate)
    return run_app(app, "distrib")
