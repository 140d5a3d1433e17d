"""What is exported: one model from pixels to logits, and all that a bundle says about it."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import nn

from distrib.bundle import Bundle, Ensemble, FormatName, Gates, Parity, Preprocessing, Weights, describe_file
from distrib.code import code_record
from distrib.config import Experiment
from distrib.data.folds import fold_view
from distrib.data.ingest import IngestOptions
from distrib.data.manifest import Manifest, load_manifest
from distrib.data.transform import EvalTransform
from distrib.decision import Threshold, positive_index
from distrib.errors import DataError
from distrib.evaluate import check_classes
from distrib.export.table import default_format
from distrib.forward import PixelModel
from distrib.rundir import RunDir
from distrib.trained import Trained, load_trained

_PACKAGES = ("torch", "onnx", "onnxscript", "onnxruntime", "openvino", "nncf", "numpy", "opencv-python-headless",
             "simplejpeg", "pillow")


@dataclass(frozen=True)
class Subject:
    """A run's model, or an ensemble of several."""

    module: nn.Module
    """uint8 images_NHWC to float32 logits_NK, in evaluation mode; see `distrib.forward.PixelModel`."""
    experiment: Experiment
    classes: tuple[str, ...]
    threshold: Threshold | None
    validation: dict[str, Any]
    """The report on the samples that it was chosen on; empty if there was none."""
    weights: Weights
    manifest: Manifest
    """Its dataset, with its own validation split."""
    ensemble: Ensemble | None = None

    @property
    def split(self) -> Literal["val", "train"]:
        """Where the images come from that exact formats are compared on."""
        return "val" if any(shard.split == "val" for shard in self.manifest.shards) else "train"

    @property
    def transform(self) -> EvalTransform:
        return EvalTransform(self.experiment.data.image_size, self.experiment.data.eval_crop)


def subject_of_run(run: Path, tell: Callable[[str], None]) -> Subject:
    """A run's best checkpoint. Raises CheckpointError, ConfigError, DataError, MissingPartError."""
    trained = load_trained(RunDir(run), tell)
    data = trained.experiment.data
    manifest = load_manifest(data.dataset)
    check_dataset(manifest, trained)
    return Subject(
        module=PixelModel(trained.model, data.mean, data.std).eval(), experiment=trained.experiment,
        classes=trained.classes, threshold=trained.threshold, validation=trained.validation,
        weights=Weights(sha256=trained.weights_sha256, step=trained.checkpoint.step,
                        kind="model" if trained.checkpoint.ema is None else "ema",
                        num_parameters=sum(parameter.numel() for parameter in trained.model.parameters())),
        manifest=fold_view(manifest, data))


def check_dataset(manifest: Manifest, trained: Trained) -> None:
    """Raises DataError unless this is the dataset that the run was trained on."""
    run, folder = trained.run.root, trained.experiment.data.dataset
    check_classes(manifest, trained.classes, str(run))
    if trained.dataset_sha256 != manifest.sha256:
        raise DataError(f"the dataset {folder} is not the one that {run} was trained on",
                        "the bundle would record the wrong preparation", "put the dataset back as it was")


def describe(subject: Subject, files: dict[FormatName, tuple[Path, ...]], parity: Parity, gates: Gates | None,
             metrics: dict[str, Any]) -> Bundle:
    """The bundle's document."""
    data, classes = subject.experiment.data, subject.classes
    positive = positive_index(classes, subject.experiment.evaluate.positive_class)
    validation = {key: value for key, value in subject.validation.items() if key not in ("threshold", "classes")}
    return Bundle(
        files={name: tuple(map(describe_file, paths)) for name, paths in files.items()},
        default_format=default_format(files),
        preprocessing=Preprocessing(
            ingest=IngestOptions.model_validate(subject.manifest.ingest).model_dump(mode="json"),
            image_size=data.image_size, eval_crop=data.eval_crop, mean=data.mean, std=data.std,
        ),
        classes=classes,
        positive_class=None if positive is None else classes[positive],
        threshold=subject.threshold,
        metrics={"val": validation} | metrics if validation else metrics,
        dataset_sha256=subject.manifest.sha256,
        weights=subject.weights,
        code=code_record(),
        libraries={name: version for name in _PACKAGES if (version := _version(name)) is not None},
        experiment=subject.experiment.model_dump(mode="json"),
        parity=parity,
        gates=gates,
        ensemble=subject.ensemble,
    )


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
