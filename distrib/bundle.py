"""The bundle: a folder with one checked model in several formats, and all that inference must know.

``bundle.json`` is sealed (see `distrib.durable`) and holds the SHA-256 of every model file. The seals find
damage; they are not signatures, so a bundle from a stranger is still a stranger's.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, ValidationError, model_validator

from distrib.decision import Threshold
from distrib.documents import Section, Sha256
from distrib.durable import SealError, open_sealed, seal, sha256_file
from distrib.errors import BundleError

FORMAT = "distrib-bundle/1"
FILE_NAME = "bundle.json"
ExactName = Literal["openvino", "onnx", "torch"]
"""Formats that give the trained model's own answers, in float32; see `Parity`."""
ReducedName = Literal["openvino-bf16", "openvino-int8", "onnx-int8"]
"""Smaller and faster formats that answer about so; see `Gates`."""
FormatName = Literal[ExactName, ReducedName]
PREFERENCE: tuple[ExactName, ...] = ("openvino", "onnx", "torch")
"""Which format runs by default, of those in the bundle: the fastest exact one first."""
REDUCED: tuple[ReducedName, ...] = get_args(ReducedName)

_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


class ModelFile(Section):
    name: str
    bytes: Annotated[int, Field(ge=1)]
    sha256: Sha256

    @model_validator(mode="after")
    def _plain_name(self) -> ModelFile:
        if not _FILE.fullmatch(self.name):
            raise ValueError(f"{self.name!r} is no plain file name")
        return self


class Preprocessing(Section):
    """From a raw file to what the model takes: uint8 RGB [N, image_size, image_size, 3]."""

    ingest: dict[str, Any]
    """`distrib.data.ingest.IngestOptions`: raw file to canonical image, as the dataset was prepared."""
    image_size: Annotated[int, Field(ge=1)]
    eval_crop: Annotated[float, Field(gt=0, le=1)]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    """For the record: the model files normalise by themselves."""


class FormatParity(Section):
    """How a format, read back from its files, compares with the torch model that was trained."""

    max_probability_difference: Annotated[float, Field(ge=0)]
    max_logit_difference: Annotated[float, Field(ge=0)]
    labels_equal: Annotated[int, Field(ge=0)]
    """Samples with the same label: all but ties, or the bundle would not exist."""
    ties: Annotated[int, Field(ge=0)]
    """Samples whose label hangs on rounding: two probabilities, or one and the threshold, within 1e-6."""


class Parity(Section):
    split: str
    num_samples: Annotated[int, Field(ge=1)]
    batch_sizes: tuple[int, ...]
    tolerance: Annotated[float, Field(gt=0)]
    """Largest difference of any probability that was accepted."""
    formats: dict[FormatName, FormatParity]


class FormatGate(Section):
    """How good a reduced format, read back from its files, is on the validation split."""

    value: float
    """The metric, with the label of the largest probability as in training's validation."""
    drop: float
    """By how much it is worse than the exact format; negative where it is better."""
    drop_low: float | None = None
    """95% interval of the drop by chance of the samples, see `distrib.export.drop`; None where it is not defined."""
    drop_high: float | None = None
    labels_equal: Annotated[int, Field(ge=0)]
    """Samples with the exact format's label."""
    label_agreement: Annotated[float, Field(ge=0, le=1)]


class Gates(Section):
    """What every reduced format had to pass: the metric may be worse by ``max_drop`` at most."""

    split: str
    num_samples: Annotated[int, Field(ge=1)]
    metric: str
    exact_format: ExactName
    """What the reduced formats were compared with."""
    exact_value: float
    max_drop: Annotated[float, Field(ge=0)]
    calibration_samples: Annotated[int, Field(ge=1)]
    """Images of the training split that the ranges of int8 come from."""
    formats: dict[ReducedName, FormatGate]


class Weights(Section):
    sha256: Sha256
    """`distrib.models.weights.weights_sha256` of what was exported."""
    step: Annotated[int, Field(ge=0)]
    kind: Literal["model", "ema", "ensemble"]
    num_parameters: Annotated[int, Field(ge=1)]


class Member(Section):
    """One model of an ensemble, and what it adds; by the ensemble's metric, on the samples that it was chosen on."""

    run: str
    weights_sha256: Sha256
    step: Annotated[int, Field(ge=0)]
    model: str
    image_size: Annotated[int, Field(ge=1)]
    fold: Annotated[int, Field(ge=0)] | None
    """The fold that it was validated on."""
    weight: Annotated[float, Field(ge=0, le=1)]
    """Its part in the mean; 0 if it was not chosen: then its weights are not in the bundle."""
    alone: float
    """The metric of this member alone."""
    adds: float | None
    """By how much the metric is better with it than with the others alone; negative where they are better without.
    None where it is the only one, or where no sample was held out from all members."""


class GreedyStep(Section):
    """One step of the greedy choice: the member that was added, once more maybe, and the metric with it."""

    run: str
    value: float


class Ensemble(Section):
    """How a bundle's one model is made of several, and how that was decided; the test split had no part in it."""

    members: Annotated[tuple[Member, ...], Field(min_length=1)]
    combine: Literal["mean", "weights", "rank"]
    select: Literal["all", "greedy"]
    tta: Literal["none", "hflip", "flips"]
    """Views of an image that are averaged inside the model."""
    temperature: Annotated[float, Field(gt=0)]
    """Divides logits: those of the combination, or of each member where no sample was held out from all of them."""
    offset: float
    """Added to the positive class's log-odds; of a rank mean only."""
    held_out: Literal["split", "out_of_fold"]
    """split: all members answered the same samples, which none was trained on. out_of_fold: each its own fold only."""
    num_samples: Annotated[int, Field(ge=1)]
    metric: str
    value: float
    """The metric of the ensemble on those samples; out of fold, that of single members."""
    path: tuple[GreedyStep, ...]
    """Of a greedy choice."""


class Bundle(Section):
    files: dict[FormatName, Annotated[tuple[ModelFile, ...], Field(min_length=1)]]
    default_format: ExactName
    preprocessing: Preprocessing
    classes: Annotated[tuple[str, ...], Field(min_length=2)]
    positive_class: str | None
    threshold: Threshold | None
    """Decides the label where there is one; see `distrib.decision.decide`."""
    metrics: dict[str, Any]
    """Reports by split, as known at export: "val" from the training, others where they were evaluated."""
    dataset_sha256: Sha256
    weights: Weights
    code: dict[str, str | None]
    libraries: dict[str, str]
    experiment: dict[str, Any]
    parity: Parity
    gates: Gates | None = None
    """None without reduced formats."""
    ensemble: Ensemble | None = None
    """None for a single model."""

    @model_validator(mode="after")
    def _consistent(self) -> Bundle:
        if self.default_format not in self.files:
            raise ValueError(f"default_format is {self.default_format!r}, which it has no files of")
        for name in REDUCED:
            if name in self.files and (self.gates is None or name not in self.gates.formats):
                raise ValueError(f"{name} passed no gate")
        if len(set(self.classes)) != len(self.classes):
            raise ValueError("a class stands twice")
        names = [file.name for files in self.files.values() for file in files]
        if len(set(names)) != len(names):
            raise ValueError("a file stands twice")
        if self.positive_class is not None and self.positive_class not in self.classes:
            raise ValueError(f"positive_class {self.positive_class!r} is no class")
        if self.threshold and (len(self.classes) != 2 or self.threshold.positive_class != self.positive_class):
            raise ValueError("the threshold does not belong to these classes")
        return self

    def to_bytes(self) -> bytes:
        """The sealed document; without the sections that it does not have, so that versions that know of none read
        it."""
        absent = {name for name in ("gates", "ensemble") if getattr(self, name) is None}
        return seal(FORMAT, self.model_dump(mode="json", exclude=absent or None), indent=1)


@dataclass(frozen=True)
class LoadedBundle:
    """A verified bundle on disk."""

    path: Path
    bundle: Bundle
    sha256: str
    """The seal: the bundle's identity."""

    def files(self, name: FormatName) -> list[Path]:
        """The files of a format."""
        return [self.path / file.name for file in self.bundle.files[name]]

    def choose(self, wish: str | None) -> FormatName:
        """The format to run: the wish, or the bundle's default. Raises BundleError if it is not in the bundle."""
        if wish is None:
            return self.bundle.default_format
        for name in self.bundle.files:
            if name == wish:
                return name
        raise BundleError(f"the bundle {self.path} has no format {wish!r} (it has {', '.join(self.bundle.files)})",
                          "nothing was run", "choose one of those, or export again with --format")


def load_bundle(path: Path) -> LoadedBundle:
    """Read a bundle and verify every file in it. Raises BundleError."""
    document = path / FILE_NAME
    try:
        raw = document.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise BundleError(f"{path} is no bundle: {FILE_NAME} is missing", "there is no model to use",
                          "name a folder that `distrib export --out` wrote") from None
    except OSError as error:
        raise BundleError(f"{document} can not be read: {error.strerror}", "the bundle can not be used",
                          "check the path and its permissions") from error
    try:
        body = open_sealed(raw, FORMAT)
        seal_sha256 = body.pop("sha256")
        body.pop("format")
        bundle = Bundle.model_validate(body)
    except SealError as error:
        raise _damaged(path, f"{FILE_NAME}: {error}") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise _damaged(path, f"{FILE_NAME}: {place} {first['msg']}".replace("  ", " ")) from error
    for files in bundle.files.values():
        _verify(path, files)
    return LoadedBundle(path, bundle, seal_sha256)


def _verify(path: Path, files: Sequence[ModelFile]) -> None:
    for file in files:
        try:
            size = (path / file.name).stat().st_size
            if size != file.bytes:
                raise _damaged(path, f"{file.name} has {size} bytes, not {file.bytes}")
            if sha256_file(path / file.name) != file.sha256:
                raise _damaged(path, f"{file.name} does not match its digest")
        except FileNotFoundError:
            raise _damaged(path, f"{file.name} is missing") from None
        except OSError as error:
            raise _damaged(path, f"{file.name} can not be read: {error.strerror}") from error


def describe_file(path: Path) -> ModelFile:
    """Name, size and digest of a file as written. Raises OSError."""
    return ModelFile(name=path.name, bytes=path.stat().st_size, sha256=sha256_file(path))


def _damaged(path: Path, what: str) -> BundleError:
    return BundleError(f"the bundle {path} is damaged: {what}", "its predictions could not be trusted",
                       "copy it again from where it was exported, or export again")
