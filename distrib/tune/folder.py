"""A study's folder: every path in it, and the document that says what the study is."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distrib.config import Experiment
from distrib.documents import validate
from distrib.durable import SealError, open_sealed, replace_file, seal
from distrib.errors import ConfigError, storage_errors
from distrib.rundir import RunDir
from distrib.train.settle import FREE, differences
from distrib.tune.study import Plan, Study

FORMAT = "distrib-study/1"
MAY_CHANGE = ("trials", "at_once", "folder", "experiment")
"""Keys of a study that may have other values when it goes on; what the experiment holds is compared by itself."""


@dataclass(frozen=True)
class StudyDir:
    """The layout of a study's folder. Computes paths only."""

    root: Path

    @property
    def document(self) -> Path:
        """What the study is, sealed JSON; written once."""
        return self.root / "study.json"

    @property
    def journal(self) -> Path:
        """The trials by Optuna, one JSON object a line, where no database holds them."""
        return self.root / "journal.jsonl"

    @property
    def best(self) -> Path:
        """The best trial's experiment."""
        return self.root / "best.yaml"

    @property
    def cluster(self) -> Path:
        """The cluster file of trials on this machine's cores."""
        return self.root / "local.yaml"

    @property
    def lock(self) -> RunDir:
        """Where the lease of who begins the study lies."""
        return RunDir(self.root)

    @property
    def runs(self) -> Path:
        """The trials' folders."""
        return self.root / "trials"

    def run(self, number: int) -> RunDir:
        return RunDir(self.runs / f"{number:04d}")

    def experiment(self, number: int) -> Path:
        """What a trial is begun with."""
        return self.root / "experiments" / f"{number:04d}.yaml"

    def log(self, number: int) -> Path:
        """What a trial's training says, all its starts."""
        return self.root / "logs" / f"{number:04d}.log"

    def claim(self, number: int) -> RunDir:
        """Where the lease of the process that sees to a trial lies."""
        return RunDir(self.root / "claims" / f"{number:04d}")


def settle_study(folder: StudyDir, plan: Plan, storage: str) -> str:
    """The study's identity: a new one's, which is written, or that of a study that goes on.

    ``storage`` names where the trials are recorded, without a password. Raises ConfigError if the study was begun as
    another; StorageError.
    """
    if not folder.document.exists():
        identity = secrets.token_hex(16)
        with storage_errors(f"the study's folder {folder.root} could not be written", "nothing was started"):
            replace_file(folder.document, seal(FORMAT, {"id": identity, **_content(plan, storage)}, indent=1))
        return identity
    begun, now = read_document(folder), _content(plan, storage)
    if begun["dataset_sha256"] != now["dataset_sha256"]:
        raise ConfigError(f"the dataset {plan.base.data.dataset} is not the one that {folder.root} was begun with",
                          "the study was not continued", "give the same dataset, or begin a study in another folder")
    changed = [*_changes(begun, now, "study", MAY_CHANGE), *_changes(begun, now, "experiment", FREE)]
    if changed:
        raise ConfigError(f"{folder.root} was begun with another {', '.join(changed)}", "the study was not continued",
                          "give the study's own values, or begin another with --folder")
    return str(begun["id"])


def read_document(folder: StudyDir) -> dict[str, Any]:
    """Raises ConfigError."""
    try:
        document = open_sealed(folder.document.read_bytes(), FORMAT)
        # As this version reads them: keys that came later have their defaults.
        experiment = validate(Experiment, document["experiment"], f"{folder.document}: experiment")
        study = validate(Study, document["study"], f"{folder.document}: study")
        return {"id": document["id"], "dataset_sha256": document["dataset_sha256"],
                "study": study.model_dump(mode="json"), "experiment": experiment.model_dump(mode="json")}
    except OSError as error:
        raise ConfigError(f"{folder.document} can not be read: {error.strerror}", "the study was not continued",
                          "check the path and its permissions") from error
    except (SealError, KeyError) as error:
        raise ConfigError(f"{folder.document} is damaged: {error}", "the study was not continued",
                          "restore it from a backup, or begin a study in another folder") from error


def _content(plan: Plan, storage: str) -> dict[str, Any]:
    study = plan.study.model_dump(mode="json") | {"name": plan.name, "storage": storage}
    return {"study": study, "experiment": plan.base.model_dump(mode="json"), "dataset_sha256": plan.manifest.sha256}


def _changes(begun: dict[str, Any], now: dict[str, Any], part: str, free: tuple[str, ...]) -> list[str]:
    names = differences(begun[part], now[part])
    return [name if part == "study" else f"{part}.{name}" for name in names if not name.startswith(free)]
