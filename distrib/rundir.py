"""Every path that a run touches."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class RunDir:
    """The layout of one run's folder. Computes paths only; reads and writes nothing."""

    root: Path

    @property
    def experiment(self) -> Path:
        """The resolved experiment, sealed JSON; written once, when the run begins."""
        return self.root / "experiment.json"

    @property
    def start(self) -> Path:
        """The weights that `train --from` began with, as safetensors; `model.start` has their digest."""
        return self.root / "start.safetensors"

    @property
    def environment(self) -> Path:
        """Processor, library versions and threads of each start of the run, one JSON object a line."""
        return self.root / "environment.jsonl"

    @property
    def metrics(self) -> Path:
        """One JSON object a line: steps, validations, events."""
        return self.root / "metrics.jsonl"

    @property
    def ledger(self) -> Path:
        """Folder of the keys that each step trained on, one file a rank, when asked for."""
        return self.root / "ledger"

    @property
    def tensorboard(self) -> Path:
        return self.root / "tensorboard"

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    def checkpoint(self, step: int) -> Path:
        return self.checkpoints / f"step-{step:09d}"

    @property
    def dataset(self) -> Path:
        """Which dataset the run was begun with, sealed JSON: `distrib.data.manifest.DatasetRecord`."""
        return self.root / "dataset.json"

    @property
    def lease(self) -> Path:
        """Folder of the tokens of the trainings that wrote here, the highest of the one that does:
        `distrib.elastic.lease`."""
        return self.root / "lease"

    @property
    def members(self) -> Path:
        """Where those that train can be reached, for others to join; only its owner may read it."""
        return self.root / "members.json"

    @property
    def result(self) -> Path:
        """What `train --json` printed when the run finished."""
        return self.root / "result.json"


def is_finished(run: RunDir) -> bool:
    """Whether a run has come to its end."""
    try:
        return bool(json.loads(run.result.read_text(encoding="utf-8"))["finished"])
    except (OSError, ValueError, KeyError, TypeError):
        return False  # training it again finds out, and does no more than is left
