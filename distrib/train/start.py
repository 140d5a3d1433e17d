"""A warm start: a new run begins with the weights of another run or of a bundle, and keeps a copy of them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from distrib.bundle import FILE_NAME as BUNDLE_NAME
from distrib.bundle import load_bundle
from distrib.config import DataConfig, Experiment, StartConfig
from distrib.data.folds import fold_view
from distrib.data.frozen import leaks, seen_by, version_of
from distrib.data.manifest import load_manifest
from distrib.documents import validate
from distrib.durable import fsync_dir
from distrib.errors import BundleError, CheckpointError, DataError, counted, storage_errors
from distrib.models.weights import take_weights, weights_sha256
from distrib.rundir import RunDir
from distrib.runtimes.torch_runtime import read_weights
from distrib.tensor_file import write_tensors
from distrib.train.settle import Settled
from distrib.trained import load_trained

Tell = Callable[[str], None]


def with_start(settled: Settled, tell: Tell) -> tuple[Settled, Mapping[str, Tensor] | None]:
    """(what is settled, with the weights' digest in its experiment; the weights, or None). Local, writes nothing.

    Raises BundleError, CheckpointError, ConfigError.
    """
    if settled.source is None:
        return settled, None
    read = _read_source(settled.source, tell)
    if (told := seen_validation(settled, read.experiment.data, read.dataset_sha256, read.classes)) is not None:
        tell(told)
    before, own = read.experiment.model.start, (read.dataset_sha256,)
    start = StartConfig(source=str(settled.source), weights_sha256=weights_sha256(read.tensors), classes=read.classes,
                        datasets=(*(before.datasets if before else ()), *own),
                        in_folds=(*(before.in_folds if before else ()),
                                  *(own if read.experiment.data.learns_val else ())))
    model = settled.experiment.model.model_copy(update={"start": start})
    return settled.with_experiment(settled.experiment.model_copy(update={"model": model})), read.tensors


def seen_validation(settled: Settled, trained_on: DataConfig, dataset_sha256: str,
                    classes: tuple[str, ...]) -> str | None:
    """A warning where the source's own training was on groups or images that now validate; None where it was not, or
    its dataset is not at hand. ``trained_on`` and what follows are the source's."""
    data, now = settled.experiment.data, settled.manifest
    if all(shard.split != "val" for shard in now.shards):
        return None
    known = [now if data.fold is None else load_manifest(data.dataset)]
    with contextlib.suppress(DataError):  # it may have been moved
        known.append(load_manifest(trained_on.dataset))
    found = next(((one, version) for one in known if (version := version_of(one, dataset_sha256)) is not None), None)
    if found is None:
        return None
    whole, version = found
    then = whole.model_copy(update={"classes": classes, "shards": tuple(
        shard for shard in whole.shards if shard.version <= version)})
    samples = now.samples("val")
    leaked = leaks(samples, seen_by(fold_view(then, trained_on), "val", version))
    if not leaked:
        return None
    return (f"warning: {len(leaked)} of {len(samples)} validation samples are of groups or images that "
            f"{settled.source} was trained on, such as {leaked[0]}: scores on them, and the checkpoint and threshold "
            "chosen by them, will be too good; start from a run that has the same validation split or fold")


def write_start(run: RunDir, tensors: Mapping[str, Tensor]) -> None:
    """Keep the weights in the run's folder. Raises StorageError."""
    staging = run.start.with_name(f".{run.start.name}.{os.getpid()}.tmp")
    with storage_errors(f"the starting weights {run.start} could not be written", "nothing was started"):
        try:
            write_tensors(staging, tensors)
            os.replace(staging, run.start)
        finally:
            staging.unlink(missing_ok=True)
        fsync_dir(run.root)


def take_start(model: nn.Module, run: RunDir, start: StartConfig, classes: Sequence[str], tell: Tell) -> None:
    """Give a model the weights that the run keeps; rows of its head go by the classes' names.

    Raises CheckpointError if they are damaged or gone, ConfigError if they are of another model.
    """
    try:
        tensors = load_file(run.start)
    except (OSError, SafetensorError) as error:
        raise _unusable(run.start, f"can not be read: {error}") from error
    if weights_sha256(tensors) != start.weights_sha256:
        raise _unusable(run.start, "does not hold the weights that model.start names")
    rows = None
    if tuple(classes) != start.classes:
        places = {name: row for row, name in enumerate(start.classes)}
        rows = [places.get(name) for name in classes]
    done = take_weights(model, tensors, f"--from {start.source}", rows)
    fresh = [name for name in classes if name not in start.classes]
    tell(f"starts from {start.source}: {counted(done.loaded, 'tensor')}, weights {start.weights_sha256[:16]}"
         + (f"; fresh rows of the head for {', '.join(fresh[:5])}{' ...' if fresh[5:] else ''}" if fresh else ""))


@dataclass(frozen=True)
class _Source:
    tensors: Mapping[str, Tensor]
    classes: tuple[str, ...]
    experiment: Experiment
    dataset_sha256: str


def _read_source(source: Path, tell: Tell) -> _Source:
    if not (source / BUNDLE_NAME).exists():
        trained = load_trained(RunDir(source), tell)
        return _Source(trained.checkpoint.weights, trained.classes, trained.experiment, trained.dataset_sha256)
    loaded = load_bundle(source)
    tensors = read_weights(*loaded.files("torch"))
    if weights_sha256(tensors) != loaded.bundle.weights.sha256:
        raise BundleError(f"the torch weights in the bundle {source} are not those that it names",
                          "nothing was started", "export it again, or start from its run")
    return _Source(tensors, loaded.bundle.classes,
                   validate(Experiment, loaded.bundle.experiment, f"{source}: experiment"),
                   loaded.bundle.dataset_sha256)


def _unusable(path: Path, what: str) -> CheckpointError:
    return CheckpointError(f"{path}, which the run starts from, {what}", "the run can not go on without its beginning",
                           "restore it from a backup, or train into another --run folder")
