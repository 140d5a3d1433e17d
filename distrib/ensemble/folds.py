"""The members of k folds, trained one after another; each is an ordinary run that `distrib train` goes on with."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from distrib.rundir import RunDir
from distrib.train.settle import Settled, settle
from distrib.world import World


def settle_folds(experiment: Path, folds: int, overrides: Sequence[str], root: Path | None) -> list[Settled]:
    """The runs fold-0, fold-1 and on below ``root`` [runs/NAME-folds], begun or not. Writes nothing.

    Raises ConfigError, CheckpointError or DataError where one could not be trained, before any is.
    """
    root = root or Path("runs") / f"{experiment.stem}-folds"
    return [settle(experiment, [*overrides, f"data.folds={folds}", f"data.fold={fold}"], root / f"fold-{fold}", World())
            for fold in range(folds)]


def train_folds(runs: Sequence[Settled], tell: Callable[[str], None]) -> int:
    """Train those that are not finished. 0 if all are then, or else the signal that asked for a stop.

    Raises any DistribError.
    """
    from distrib.train.run import run_train  # takes seconds to import

    for number, settled in enumerate(runs):
        if is_finished(settled.run):
            tell(f"fold {number} of {len(runs)} is trained already: {settled.run.root}")
            continue
        tell(f"fold {number} of {len(runs)}")
        result = run_train(settled, World(), tell)
        if not result["finished"]:
            tell(f"stopped after step {result['step']} of fold {number}; the same command goes on there")
            return int(result["signal"])
    return 0


def is_finished(run: RunDir) -> bool:
    """Whether a run has come to its end."""
    try:
        return bool(json.loads(run.result.read_text(encoding="utf-8"))["finished"])
    except (OSError, ValueError, KeyError, TypeError):
        return False  # training it again finds out, and does no more than is left
