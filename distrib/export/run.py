"""From a run, or another subject, to a bundle: trace, write, read back, compare, publish."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from distrib.bundle import FILE_NAME, ExactName, FormatName, Gates, Parity, ReducedName, load_bundle
from distrib.data.shards import ShardReader
from distrib.durable import begin_staging, publish_dir, write_durable
from distrib.errors import DataError, storage_errors
from distrib.export.onnx_format import onnx_file
from distrib.export.parity import compare, worst_of
from distrib.export.subject import Subject, describe, subject_of_run
from distrib.export.table import default_format, write_format, write_reduced
from distrib.export.torch_format import trace
from distrib.export.wishes import check_wishes
from distrib.forward import module_forward
from distrib.runtimes.table import one_by_one, open_files
from distrib.scoring import Images, Logits, compute_threads, score_split, spread_images

Tell = Callable[[str], None]

_SEVERAL = 8  # images a call, beside one by one


def run_export(run: Path, *, out: Path, formats: Sequence[str] = ("torch", "onnx", "openvino"),
               tolerance: float = 1e-3, num_samples: int = 64, max_drop: float = 0.005, calibration: int = 300,
               metrics: dict[str, Any] | None = None, tell: Tell = lambda _: None) -> dict[str, Any]:
    """Write the bundle ``out`` from a run's best checkpoint; returns what `export --json` prints.

    The gate of exact formats: ``num_samples`` samples spread over the validation split (the training split if
    there is none) go through the torch model and through every format read back from its files, one by one and
    several at a time. A probability that differs by more than ``tolerance``, or a label that differs, is a
    BundleError, and nothing is left behind.

    The gate of reduced formats, whose ranges come from ``calibration`` samples spread over the training split:
    evaluate.metric on the whole validation split may be worse than that of the default format by ``max_drop``
    at most, else it is a BundleError as well. ``metrics`` are further reports by split to keep in the bundle.

    Raises BundleError, CheckpointError, ConfigError, DataError, MissingPartError, StorageError.
    """
    exact, reduced = check_wishes(run, out, formats, tolerance, num_samples, max_drop, calibration)
    return write_bundle(subject_of_run(run, tell), out=out, exact=exact, reduced=reduced, tolerance=tolerance,
                        num_samples=num_samples, max_drop=max_drop, calibration=calibration, metrics=metrics, tell=tell)


def write_bundle(subject: Subject, *, out: Path, exact: Sequence[ExactName], reduced: Sequence[ReducedName],
                 tolerance: float, num_samples: int, max_drop: float, calibration: int,
                 metrics: dict[str, Any] | None = None, tell: Tell = lambda _: None) -> dict[str, Any]:
    """`run_export` of any subject. Raises BundleError, DataError, MissingPartError, StorageError."""
    manifest, data = subject.manifest, subject.experiment.data
    if reduced and subject.split != "val":
        raise DataError(f"the dataset {data.dataset} has no validation split",
                        f"{', '.join(reduced)} could not be judged",
                        "prepare it with three splits, or export exact formats only")
    keys, images_NHWC = spread_images(data.dataset, manifest.samples(subject.split), subject.transform, num_samples)
    with (storage_errors(f"the bundle {out} could not be written", "there is no bundle"),
          _staged(out, tell) as staging):
        program = trace(subject.module, data.image_size)
        files: dict[FormatName, tuple[Path, ...]] = {}
        for name in exact:
            tell(f"writing {name}")
            files[name] = tuple(write_format(name, program, staging))
        parity = _gate(subject, files, keys, images_NHWC, tolerance, tell)
        gates = None
        if reduced:
            num_calibration = _reduce(subject, program, staging, reduced, calibration, files, tell)
            gates = _second_gate(subject, files, reduced, num_calibration, max_drop, tell)
        bundle = describe(subject, files, parity, gates, metrics or {})
        for path in staging.iterdir():
            _fsync(path)
        write_durable(staging / FILE_NAME, bundle.to_bytes())
        publish_dir(staging, out)
    loaded = load_bundle(out)
    return {"bundle": str(out), "sha256": loaded.sha256, "formats": list(files),
            "default_format": bundle.default_format,
            "weights_sha256": bundle.weights.sha256, "step": bundle.weights.step,
            "bytes": sum(file.bytes for one in bundle.files.values() for file in one),
            "threshold": bundle.threshold.model_dump(mode="json") if bundle.threshold else None,
            "parity": bundle.parity.model_dump(mode="json"),
            "gates": bundle.gates.model_dump(mode="json") if bundle.gates else None}


@contextmanager
def _staged(out: Path, tell: Tell) -> Iterator[Path]:
    staging = begin_staging(out, tell)
    try:
        yield staging
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise


def _fsync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _gate(subject: Subject, files: dict[FormatName, tuple[Path, ...]], keys: Sequence[str], images_NHWC: Images,
          tolerance: float, tell: Tell) -> Parity:
    side, split = subject.experiment.data.image_size, subject.split
    eager = module_forward(subject.module)
    several = [images_NHWC[begin:begin + _SEVERAL] for begin in range(0, len(images_NHWC), _SEVERAL)]
    reference_NK = np.concatenate([eager(part) for part in several])
    threads = compute_threads()
    formats = {}
    with ThreadPoolExecutor(threads, thread_name_prefix="gate") as pool:
        for name, paths in files.items():
            singly = open_files(name, paths, side, threads)
            together = open_files(name, paths, side, threads, any_batch=True)
            outputs = (one_by_one(singly, images_NHWC, pool), np.concatenate(list(pool.map(together, several))))
            checks = [compare(name, reference_NK, logits_NK, keys, subject.classes, subject.threshold, tolerance)
                      for logits_NK in outputs]
            formats[name] = worst_of(*checks)
            tell(f"{name} agrees with the trained model on {len(keys)} {split} images: probabilities within "
                 f"{formats[name].max_probability_difference:.2g}, labels equal")
    return Parity(split=split, num_samples=len(keys), batch_sizes=(1, min(_SEVERAL, len(keys))), tolerance=tolerance,
                  formats=formats)


def _reduce(subject: Subject, program: torch.export.ExportedProgram, staging: Path,
            names: Sequence[ReducedName], calibration: int, files: dict[FormatName, tuple[Path, ...]],
            tell: Tell) -> int:
    """Write the reduced formats and note their ``files``; returns the number of images calibrated with."""
    samples = subject.manifest.samples("train")
    keys, images_NHWC = spread_images(subject.experiment.data.dataset, samples, subject.transform, calibration)
    with onnx_file(program, staging) as source:
        for name in names:
            tell(f"writing {name}, calibrated on {len(keys)} training images")
            files[name] = tuple(write_reduced(name, source, staging, images_NHWC))
    return len(keys)


def _second_gate(subject: Subject, files: dict[FormatName, tuple[Path, ...]],
                 names: Sequence[ReducedName], num_calibration: int, max_drop: float, tell: Tell) -> Gates:
    """Reduced formats against the default one, on the whole validation split."""
    from distrib.export.drop import chance_lines, judge, metric_of  # scikit-learn takes a second

    experiment, classes = subject.experiment, subject.classes
    samples = subject.manifest.samples("val")
    threads = compute_threads()

    def logits(name: FormatName) -> Logits:
        forward = open_files(name, files[name], experiment.data.image_size, threads)
        return score_split(lambda images_NHWC: one_by_one(forward, images_NHWC, pool), reader, samples,
                           subject.transform, batch=experiment.evaluate.batch,
                           decode_threads=experiment.data.decode_threads)

    reference = default_format(files)
    formats = {}
    with (ShardReader(experiment.data.dataset, samples) as reader,
          ThreadPoolExecutor(threads, thread_name_prefix="gate") as pool):
        exact_NK = logits(reference)
        for name in names:
            formats[name] = judge(name, exact_NK, logits(name), samples.labels, samples.groups, classes,
                                  experiment.evaluate, subject.threshold, max_drop)
            tell(f"{name}: {experiment.evaluate.metric} {formats[name].value:.4f} on {len(samples)} val images, "
                 f"{'worse' if formats[name].drop >= 0 else 'better'} by {abs(formats[name].drop):.2g}; "
                 f"{formats[name].labels_equal} labels equal")
            for line in chance_lines(name, formats[name], len(samples), max_drop):
                tell(line)
    exact_value = abs(metric_of(exact_NK, samples.labels, classes, experiment.evaluate))
    return Gates(split="val", num_samples=len(samples), metric=experiment.evaluate.metric, exact_format=reference,
                 exact_value=exact_value, max_drop=max_drop, calibration_samples=num_calibration, formats=formats)
