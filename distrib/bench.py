"""How fast the formats of a bundle are on this machine, and whether they agree here."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from distrib.bundle import FormatName, LoadedBundle, load_bundle
from distrib.config import Experiment
from distrib.data.folds import load_view
from distrib.data.transform import EvalTransform
from distrib.decision import decide, softmax
from distrib.documents import validate
from distrib.errors import ConfigError, DistribError, counted
from distrib.runtimes.table import Runtime
from distrib.scoring import Images, spread_images

_ROUNDS = 4
_MOST_BATCH = 4096
_AGREE = 64
"""Images that labels are compared on, at least."""


def run_bench(bundle: Path, *, batches: Sequence[int] = (1, 32), seconds: float = 5.0, threads: int | None = None,
              tell: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """What `bench --json` prints: of every format and batch size the latency and the images a second.

    Every format has ``seconds`` at each batch size, split into rounds that go through the formats forwards and
    backwards by turns (A B, B A): so what else the machine does meets all alike. The ratio to the default format
    is the median over the rounds. Labels are compared on images spread over the validation split where the
    dataset is at hand, else on random pixels. Raises BundleError, ConfigError, MissingPartError.
    """
    _check(batches, seconds, threads)
    loaded = load_bundle(bundle)
    images_NHWC, what = _images(loaded, max(_AGREE, *batches), tell)
    with ExitStack() as stack:
        models = {name: stack.enter_context(Runtime(loaded, name, threads)) for name in loaded.bundle.files}
        tell(f"{counted(len(models), 'format')}, {counted(next(iter(models.values())).threads, 'thread')}, "
             f"{seconds * len(batches) * len(models):.0f} s")
        labels = {name: decide(softmax(model(images_NHWC)), loaded.bundle.classes, loaded.bundle.threshold)
                  for name, model in models.items()}
        times = {batch: _rounds({name: _call(model, images_NHWC[:batch]) for name, model in models.items()}, seconds)
                 for batch in batches}
        num_threads = next(iter(models.values())).threads
    default = loaded.bundle.default_format
    equal = {name: float(np.mean(labels[name] == labels[default])) for name in models}
    rows = [{"format": name, "batch": batch, **_summary(of_rounds[name], of_rounds[default], batch),
             "label_agreement": equal[name], "bytes": sum(file.bytes for file in loaded.bundle.files[name])}
            for batch, of_rounds in times.items() for name in models]
    return {"bundle": str(bundle), "sha256": loaded.sha256, "default_format": default, "threads": num_threads,
            "image_size": loaded.bundle.preprocessing.image_size, "labels_compared_on": what,
            "num_compared": len(images_NHWC), "rounds": _ROUNDS, "rows": rows}


def bench_lines(report: dict[str, Any]) -> list[str]:
    """The report as a table for people."""
    lines = [f"{'format':15}{'MB':>8}{'batch':>7}{'p50 ms':>9}{'p95 ms':>9}{'images/s':>10}{'ratio':>7}{'labels':>8}"]
    lines += [f"{row['format']:15}{row['bytes'] / 1e6:8.1f}{row['batch']:7}{row['p50_ms']:9.2f}{row['p95_ms']:9.2f}"
              f"{row['images_per_s']:10.1f}{row['ratio']:7.2f}{row['label_agreement']:8.3f}" for row in report["rows"]]
    return [*lines, f"{counted(report['threads'], 'thread')}; ratio: images/s to those of {report['default_format']}, "
                    f"by rounds; labels: part equal to its, of {report['num_compared']} {report['labels_compared_on']}"]


def _check(batches: Sequence[int], seconds: float, threads: int | None) -> None:
    if not batches or not all(1 <= batch <= _MOST_BATCH for batch in batches):
        raise ConfigError(f"--batch {','.join(map(str, batches))!r} is no list of numbers from 1 to {_MOST_BATCH}",
                          "nothing was measured", "write it as 1,32")
    if not 0 < seconds < math.inf:
        raise ConfigError(f"--seconds {seconds:g} is no time to measure in", "nothing was measured",
                          "give a number above 0")
    cores = len(os.sched_getaffinity(0))
    if threads is not None and not 1 <= threads <= cores:
        raise ConfigError(f"--threads {threads}, but this process may use {counted(cores, 'core')}",
                          "nothing was measured",
                          f"give a number from 1 to {cores}")


def _images(loaded: LoadedBundle, wanted: int, tell: Callable[[str], None]) -> tuple[Images, str]:
    """(images_NHWC, what they are)."""
    side = loaded.bundle.preprocessing.image_size
    try:
        data = validate(Experiment, loaded.bundle.experiment, f"{loaded.path}: experiment").data
        samples = load_view(data).samples("val")
        transform = EvalTransform(side, loaded.bundle.preprocessing.eval_crop)
        _, images_NHWC = spread_images(data.dataset, samples, transform, wanted)
        return np.resize(images_NHWC, (wanted, *images_NHWC.shape[1:])), "validation images"  # repeats too few
    except DistribError as error:
        tell(f"note: labels are compared on random pixels, since the dataset is not at hand ({error.fact})")
        return np.random.default_rng(0).integers(0, 256, (wanted, side, side, 3), dtype=np.uint8), "random images"


def _call(model: Runtime, images_NHWC: Images) -> Callable[[], object]:
    return lambda: model(images_NHWC)


def _rounds(calls: dict[FormatName, Callable[[], object]], seconds: float) -> dict[FormatName, list[list[float]]]:
    """Of each format, of each round, the seconds of its calls; at least one a round."""
    times: dict[FormatName, list[list[float]]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    for number in range(_ROUNDS):
        for name in list(calls)[::1 if number % 2 == 0 else -1]:
            taken: list[float] = []
            while not taken or sum(taken) < seconds / _ROUNDS:
                begin = time.perf_counter()
                calls[name]()
                taken.append(time.perf_counter() - begin)
            times[name].append(taken)
    return times


def _summary(of_rounds: list[list[float]], of_default: list[list[float]], batch: int) -> dict[str, Any]:
    every = np.concatenate(of_rounds)
    ratios = [np.mean(theirs) / np.mean(mine) for mine, theirs in zip(of_rounds, of_default, strict=True)]
    return {"p50_ms": float(np.percentile(every, 50) * 1e3), "p95_ms": float(np.percentile(every, 95) * 1e3),
            "images_per_s": float(batch * len(every) / every.sum()), "ratio": float(np.median(ratios)),
            "ratio_low": float(min(ratios)), "ratio_high": float(max(ratios))}
