"""Checkpoints: whole or absent, verified when read, written behind the training's back.

A checkpoint is a folder ``checkpoints/step-000000100`` of safetensors files and ``checkpoint.json``, a
sealed document with the step, the progress and each file's SHA-256. It gets its name by a rename, after
everything in it is on the disk.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from distrib.durable import SealError, open_sealed, publish_dir, remove_tree, seal, sha256_file, write_durable
from distrib.errors import CheckpointError, storage_errors
from distrib.rundir import RunDir

FORMAT = "distrib-checkpoint/1"
_NAME = re.compile(r"step-(\d{9,})")

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Checkpoint:
    """The state of a run after ``step`` steps."""

    step: int
    model: Tensors
    """Parameters and buffers by name."""
    optimizer: Tensors
    """State tensors, named PARAMETER/STATE."""
    ema: Tensors | None
    """Moving average of ``model``, where the run keeps one."""
    progress: dict[str, Any]
    """Everything else, as JSON values: exponents, early stopping, the last validation."""
    path: Path = field(default=Path(), compare=False)

    @property
    def weights(self) -> Tensors:
        """What is evaluated and exported: the moving average where there is one."""
        return self.ema if self.ema is not None else self.model


def write_checkpoint(run: RunDir, checkpoint: Checkpoint) -> Path:
    """Write and publish a checkpoint; an equal one that exists already is kept. Raises StorageError."""
    final = run.checkpoint(checkpoint.step)
    staging = final.with_name(f".{final.name}.{os.getpid()}.partial")
    with storage_errors(f"the checkpoint of step {checkpoint.step} could not be written",
                        "training stopped; the checkpoints before it are whole"):
        try:
            run.checkpoints.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(staging, ignore_errors=True)  # of a killed process that had our id: in containers ids repeat
            staging.mkdir()
            files = {}
            for name, tensors in (("model", checkpoint.model), ("optimizer", checkpoint.optimizer),
                                  ("ema", checkpoint.ema)):
                if tensors is not None:
                    path = staging / f"{name}.safetensors"
                    write_durable(path, save({key: tensor.contiguous() for key, tensor in tensors.items()}))
                    files[path.name] = sha256_file(path)
            body = {"step": checkpoint.step, "files": files, "progress": checkpoint.progress}
            write_durable(staging / "checkpoint.json", seal(FORMAT, body, indent=1))
            if final.exists():  # a damaged one that was passed over, or an older attempt at this step
                remove_tree(final)
            publish_dir(staging, final)
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            raise
    return final


def read_summary(path: Path) -> tuple[int, dict[str, Any], dict[str, str]]:
    """(step, progress, files) of a checkpoint, from its sealed document alone. Raises CheckpointError."""
    try:
        document = open_sealed((path / "checkpoint.json").read_bytes(), FORMAT)
        step, progress, files = document["step"], document["progress"], document["files"]
    except FileNotFoundError:
        raise _damaged(path, "checkpoint.json is missing") from None
    except OSError as error:
        raise _damaged(path, f"checkpoint.json can not be read: {error.strerror}") from error
    except (SealError, KeyError) as error:
        raise _damaged(path, f"checkpoint.json: {error}") from error
    return step, progress, files


def read_checkpoint(path: Path) -> Checkpoint:
    """Read and verify one checkpoint. Raises CheckpointError naming what is damaged."""
    step, progress, files = read_summary(path)
    tensors: dict[str, Tensors] = {}
    for name, expected in files.items():
        try:
            if sha256_file(path / name) != expected:
                raise _damaged(path, f"{name} does not match its digest")
            tensors[name.removesuffix(".safetensors")] = load((path / name).read_bytes())
        except OSError as error:
            raise _damaged(path, f"{name} can not be read: {error.strerror}") from error
        except SafetensorError as error:
            raise _damaged(path, f"{name}: {error}") from error
    return Checkpoint(step, tensors["model"], tensors["optimizer"], tensors.get("ema"), progress, path)


def checkpoint_paths(run: RunDir) -> list[Path]:
    """Published checkpoints, newest first."""
    try:
        found = [path for path in run.checkpoints.iterdir() if _NAME.fullmatch(path.name)]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise CheckpointError(f"{run.checkpoints} can not be read: {error.strerror}", "the run can not be used",
                              "check the path and its permissions") from error
    return sorted(found, key=lambda path: path.name, reverse=True)


def newest_checkpoint(run: RunDir, warn: Callable[[str], None]) -> Checkpoint | None:
    """The newest checkpoint that is whole; each damaged one before it is named through ``warn``.

    None if there is none at all. Raises CheckpointError if there are some and every one is damaged.
    """
    return _first_whole(checkpoint_paths(run), warn)


def best_checkpoint(run: RunDir, warn: Callable[[str], None]) -> Checkpoint:
    """The whole checkpoint with the best validation score (the earliest of equals), or the newest if none has one.

    Raises CheckpointError if there is none.
    """
    found = _first_whole(_by_score(checkpoint_paths(run)), warn)
    if found is None:
        raise CheckpointError(f"{run.root} has no checkpoint", "there is no model to use",
                              "train first, with `distrib train EXPERIMENT.yaml --run DIR`")
    return found


def _by_score(paths: list[Path]) -> list[Path]:
    """Checkpoints, given newest first, with the best first; those without a score last, newest first."""
    scored: list[tuple[float, str, Path]] = []
    others: list[Path] = []
    for path in paths:
        try:
            score = (read_summary(path)[1].get("validation") or {}).get("score")
        except CheckpointError:
            score = None
        if score is None:
            others.append(path)
        else:
            scored.append((-score, path.name, path))
    return [path for _, _, path in sorted(scored)] + others


def _first_whole(paths: list[Path], warn: Callable[[str], None]) -> Checkpoint | None:
    for path in paths:
        try:
            return read_checkpoint(path)
        except CheckpointError as error:
            warn(f"{error.fact}; passed over, using the next one")
    if paths:
        raise CheckpointError(f"every checkpoint in {paths[0].parent} is damaged", "the run can not go on from any",
                              "restore one from a backup, or train again into another --run folder")
    return None


def _damaged(path: Path, what: str) -> CheckpointError:
    return CheckpointError(f"the checkpoint {path} is damaged: {what}", "it can not be used",
                           "use another one, or restore it from a backup")


def prune(run: RunDir, keep_last: int, step: int) -> None:
    """Of the checkpoints up to ``step``, remove all but the newest ``keep_last`` and the best. Raises StorageError.

    ``step`` is the one just written. A later one was damaged when the run went on from an earlier one: it
    must not take the place of a whole one, and is replaced when the run gets there.
    """
    newest = [path for path in checkpoint_paths(run) if path.name <= run.checkpoint(step).name]
    keep = {*newest[:keep_last], *_by_score(newest)[:1]}
    with storage_errors("old checkpoints could not be removed", "training stopped; all checkpoints are kept"):
        for path in newest:
            if path not in keep:
                remove_tree(path)
        for leftover in _leftovers(run):
            shutil.rmtree(leftover, ignore_errors=True)


def _leftovers(run: RunDir) -> Iterator[Path]:
    """What a killed process left unfinished; the run's lock makes sure that nobody is at it."""
    for path in run.checkpoints.iterdir():
        if path.name.startswith(".") and path.name.endswith((".partial", ".removed")):
            yield path


class CheckpointWriter:
    """Writes snapshots in a thread, one at a time. Errors are raised at the next call.

    The caller owns no tensor of a checkpoint that it submitted: pass clones.
    """

    def __init__(self, run: RunDir, keep_last: int) -> None:
        self._run, self._keep_last = run, keep_last
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None

    def submit(self, checkpoint: Checkpoint) -> None:
        """Begin to write; waits for the one before. Raises StorageError from the one before."""
        json.dumps(checkpoint.progress, allow_nan=False)  # a mistake shows here, not in the thread
        self.wait()
        self._thread = threading.Thread(target=self._write, args=(checkpoint,), name="checkpoint")
        self._thread.start()

    def wait(self) -> None:
        """Wait until all is on the disk. Raises StorageError."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _write(self, checkpoint: Checkpoint) -> None:
        try:
            write_checkpoint(self._run, checkpoint)
            prune(self._run, self._keep_last, checkpoint.step)
        except Exception as error:  # whatever it is, training must not go on as if it had been written
            self._error = error
