"""The members of k folds, trained one after another over all cores; each is an ordinary run."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from distrib.children.claims import Claims
from distrib.children.cores import usable_cores
from distrib.children.training import CLUSTER, num_ranks, start_training, stop_requests
from distrib.config import Experiment, load_experiment
from distrib.durable import replace_file
from distrib.errors import storage_errors
from distrib.rundir import RunDir, is_finished
from distrib.train.settle import settle
from distrib.world import World, read_world

_POLL_S = 0.1
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Fold:
    """One member's training."""

    run: RunDir
    experiment: Experiment
    classes: Sequence[str]
    words: Sequence[str]
    """Of the command `distrib train`."""


def settle_folds(experiment: Path, folds: int, overrides: Sequence[str], root: Path | None) -> list[Fold]:
    """The runs fold-0, fold-1 and on below ``root`` [runs/NAME-folds], begun or not. Writes nothing.

    Each has a seed of its own, the experiment's and on: members that began alike err alike. Raises ConfigError,
    CheckpointError or DataError where one could not be trained, before any is.
    """
    root = root or Path("runs") / f"{experiment.stem}-folds"
    seed = load_experiment(experiment, overrides).seed
    found = []
    for fold in range(folds):
        settings = [*overrides, f"data.folds={folds}", f"data.fold={fold}", f"seed={seed + fold}"]
        settled = settle(experiment, settings, root / f"fold-{fold}", World())
        words = [str(experiment), "--run", str(settled.run.root)]
        found.append(Fold(settled.run, settled.experiment, settled.manifest.classes,
                          words + [word for setting in settings for word in ("--set", setting)]))
    return found


def train_folds(folds: Sequence[Fold], tell: Tell) -> int:
    """Train those that are not finished. 0 if all are then; else the exit code of the one that is not, which has told
    why, or 128 and the signal that asked for a stop. Raises StorageError, OSError.
    """
    with stop_requests() as stop_wanted:
        for number, fold in enumerate(folds):
            if is_finished(fold.run):
                tell(f"fold {number} of {len(folds)} is trained already: {fold.run.root}")
                continue
            _wait_until_free(fold, tell, stop_wanted)
            tell(f"fold {number} of {len(folds)}")
            code = stop_wanted() or _train(fold, stop_wanted)
            if stop_wanted():
                tell(f"stopped in fold {number}; the same command goes on there")
                return 128 + abs(stop_wanted())
            if code:
                return code
    return 0


def _train(fold: Fold, stop_wanted: Callable[[], int]) -> int:
    """The exit code of the training."""
    cores = usable_cores()
    cluster = fold.run.root.parent / "local.yaml"
    with storage_errors(f"{fold.run.root} could not be trained", "the folds before it are whole"):
        cluster.parent.mkdir(parents=True, exist_ok=True)
        replace_file(cluster, CLUSTER)
        training = start_training(fold.words, cluster, num_ranks(fold.experiment, len(cores)),
                                  [cpu for core in cores for cpu in core])
    asked = 0
    try:
        while (code := training.poll()) is None:
            if stop_wanted() != asked:  # a second Ctrl-C saves nothing more
                asked = stop_wanted()
                training.send_signal(abs(asked))
            time.sleep(_POLL_S)
    finally:
        if training.poll() is None:
            training.terminate()
            training.wait()
    return code


def _wait_until_free(fold: Fold, tell: Tell, stop_wanted: Callable[[], int]) -> None:
    """A training whose command was killed saves and ends by itself, a moment later. Raises OSError."""
    claims = Claims(read_world().host, fold.experiment.comm.silence_s)
    if claims.is_held(fold.run):
        tell(f"waiting for another training of {fold.run.root} to end")
        while claims.is_held(fold.run) and not stop_wanted():
            time.sleep(_POLL_S)
