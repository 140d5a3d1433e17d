"""The study file: its schema, and what can be known to be wrong before anything is trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from distrib.config import Experiment, FilePath
from distrib.data.manifest import Manifest, load_manifest
from distrib.decision import positive_index
from distrib.documents import Section, apply_overrides, read_yaml, validate, with_values
from distrib.errors import ConfigError
from distrib.tune.space import Axis, base_values, corners, in_order, number_type

FIXED = {
    "data.dataset": "all trials are judged on the same data",
    "evaluate": "all trials are judged in the same way",
    "model.start": "`train --from` writes it",
    **dict.fromkeys(("comm", "checkpoint", "guard", "watch", "train.ledger", "data.decode_threads",
                     "data.prefetch_steps"), "it changes nothing of the model"),
}
"""Keys, or sections, that a study can not vary, and why."""

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}$")]
Count = Annotated[int, Field(ge=1, le=100_000)]


class Pruning(Section):
    """Successive halving: at rungs of min_epochs, reduction times as many, and so on, only the best go on."""

    reduction: Annotated[int, Field(ge=2, le=100)] = 3
    """One of so many trials that reach a rung goes on from it."""
    min_epochs: Count = 1
    """The first rung: passes over the training split after which a trial can be pruned, at its next validation."""


class Study(Section):
    """One study file."""

    experiment: FilePath
    """The base: every trial is this experiment with other values for some keys. The first trial is the base itself."""
    keys: Annotated[dict[str, Axis], Field(min_length=1)]
    """Keys of the experiment, such as train.lr, and how each varies."""
    trials: Count = 20
    """Number of trials, the base among them. May be raised when a study goes on."""
    at_once: Annotated[int, Field(ge=1, le=1024)] = 1
    """Trials that one process trains at a time; its cores are shared among them. May be changed."""
    seed: Annotated[int, Field(ge=0, lt=1 << 63)] = 0
    """Of what is drawn. The experiments' own seed is a key of theirs."""
    sampler: Literal["tpe", "random"] = "tpe"
    """tpe: draws near what did well (tree-structured Parzen estimator); random: evenly."""
    startup: Annotated[int, Field(ge=0)] = 8
    """Of tpe: trials that are drawn evenly at first."""
    pruning: Pruning | None = None
    """None: each trial is trained to its end."""
    folder: FilePath | None = None
    """The study's folder; by default studies/NAME."""
    name: Name | None = None
    """Its name in the storage; by default that of its file."""
    storage: str = "journal"
    """journal: a file in the study's folder, which may be shared by machines; or a database, such as
    sqlite:///PATH or postgresql+psycopg://USER@HOST/DATABASE."""

    @field_validator("keys")
    @classmethod
    def _usable(cls, keys: dict[str, Axis]) -> dict[str, Axis]:
        for name in keys:
            for fixed, why in FIXED.items():
                if name == fixed or name.startswith(f"{fixed}."):
                    raise ValueError(f"{name} can not vary: {why}")
            for other in keys:
                if name.startswith(f"{other}."):
                    raise ValueError(f"{other} holds {name}; only one of them can vary")
        in_order(keys)
        return keys


@dataclass(frozen=True)
class Plan:
    """A study that is well-formed, its base experiment and its data."""

    study: Study
    name: str
    folder: Path
    document: dict[str, Any]
    """The base experiment as it was written, with overrides."""
    base: Experiment
    manifest: Manifest

    def experiment(self, values: dict[str, Any]) -> Experiment:
        """That of a trial. Raises ConfigError."""
        return validate(Experiment, with_values(self.document, values), "the trial's experiment")

    @property
    def base_values(self) -> dict[str, Any]:
        """What the base gives to the keys that vary."""
        return base_values(self.study.keys, self.document)


def load_plan(path: Path, overrides: Sequence[str] = (), folder: Path | None = None) -> Plan:
    """Read a study, its experiment and the data's manifest. ``overrides`` are of the experiment.

    Raises ConfigError, ManifestError.
    """
    study = validate(Study, read_yaml(path, "study"), f"the study {path}")
    document = apply_overrides(read_yaml(study.experiment, "experiment"), overrides)
    base = validate(Experiment, document, f"the experiment {study.experiment}")
    _check_space(path, study, document)
    manifest = load_manifest(base.data.dataset)
    positive_index(manifest.classes, base.evaluate.positive_class)
    for split in ("train", "val"):
        manifest.samples(split)
    name = study.name or path.stem
    validate(_Named, {"name": name}, f"the study {path}")
    return Plan(study, name, folder or study.folder or Path("studies") / name, document, base, manifest)


class _Named(Section):
    name: Name


def _check_space(path: Path, study: Study, document: dict[str, Any]) -> None:
    """Raises ConfigError for a key that no experiment has, and for ends of axes that make no experiment."""
    where = f"the study {path}: keys"
    for values in corners(study.keys):
        told = ", ".join(f"{name}={value}" for name, value in values.items())
        validate(Experiment, with_values(document, values), f"{where}: a trial with {told}")
    for name, axis in study.keys.items():
        if axis.choices is not None:
            continue
        kind = number_type(name)
        if kind is None:
            raise ConfigError(f"{where}.{name} has a range, and takes no numbers", "nothing was started",
                              "give it choices")
        if kind is int and any(isinstance(end, float) for end in (axis.low, axis.high, axis.step)):
            raise ConfigError(f"{where}.{name} takes whole numbers only", "nothing was started",
                              "write low, high and step as such")
