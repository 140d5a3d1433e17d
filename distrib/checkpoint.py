"""Checkpoints: whole or absent, verified when written and read.

A checkpoint is a folder ``checkpoints/step-000000100`` of safetensors files and ``checkpoint.json``, a
sealed document with the step, the progress and each file's SHA-256. It gets its name by a rename, after
everything in it is on the disk.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from distrib.durable import SealError, open_sealed, publish_dir, remove_tree, seal, sha256_file, write_durable
from distrib.errors import CheckpointError, storage_errors
from distrib.rundir import RunDir
from distrib.tensor_file import write_tensors

FORMAT = "distrib-checkpoint/1"
_NAME = re.compile(r"step-(\d{9,})")

Tensors = dict[str, Tensor]
Part = dict[str, Tensors]
"""Files and what is in them. A file's name begins with the kind of its tensors, and a dot."""


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
    def kinds(self) -> dict[str, Tensors]:
        """Its tensors by kind."""
        kinds = {"model": self.model, "optimizer": self.optimizer}
        return kinds if self.ema is None else {**kinds, "ema": self.ema}

    @property
    def weights(self) -> Tensors:
        """What is evaluated and exported: the moving average where there is one."""
        return self.ema if self.ema is not None else self.model


def write_checkpoint(run: RunDir, checkpoint: Checkpoint,
                     write: Callable[[Path], dict[str, str]] | None = None) -> Path:
    """Write and publish a checkpoint, in the place of one of the same step. Raises StorageError.

    ``write`` puts its files into a folder: name -> SHA-256; by default a file a kind.
    """
    final = run.checkpoint(checkpoint.step)
    staging = final.with_name(f".{final.name}.{os.getpid()}.partial")
    with storage_errors(f"the checkpoint of step {checkpoint.step} could not be written",
                        "the checkpoints before it are whole"):
        try:
            run.checkpoints.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(staging, ignore_errors=True)  # of a killed process that had our id: in containers ids repeat
            staging.mkdir()
            files = write(staging) if write is not None else write_files(staging, files_of(checkpoint.kinds))
            sizes = {name: (staging / name).stat().st_size for name in files}
            body = {"step": checkpoint.step, "files": files, "bytes": sizes, "progress": checkpoint.progress}
            write_durable(staging / "checkpoint.json", seal(FORMAT, body, indent=1))
            if final.exists():  # a damaged one that was passed over, or an older attempt at this step
                remove_tree(final)
            publish_dir(staging, final)
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            raise
    return final


def files_of(kinds: Mapping[str, Tensors], ending: str = "") -> Part:
    """A file for each kind of tensors."""
    return {f"{kind}.{ending}safetensors": tensors for kind, tensors in kinds.items()}


def write_files(folder: Path, part: Part) -> dict[str, str]:
    """Write files, and read them back: name -> SHA-256. Raises OSError."""
    files = {}
    for name, tensors in part.items():
        files[name] = write_tensors(folder / name, tensors)
        if read_back(folder / name) != files[name]:
            raise OSError(errno.EIO, "what was read back is not what was written", name)
    return files


def read_back(path: Path) -> str:
    """SHA-256 of what the disk holds, not of what memory still does."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)
    return sha256_file(path)


def read_summary(path: Path) -> tuple[int, dict[str, Any], dict[str, str]]:
    """(step, progress, files) of a checkpoint, from its sealed document alone. Raises CheckpointError."""
    document = _document(path)
    return document["step"], document["progress"], document["files"]


def _document(path: Path) -> dict[str, Any]:
    """What a checkpoint's sealed document says. Raises CheckpointError."""
    try:
        document = open_sealed((path / "checkpoint.json").read_bytes(), FORMAT)
        if missing := {"step", "progress", "files"} - document.keys():
            raise SealError(f"it lacks {', '.join(sorted(missing))}")
    except FileNotFoundError:
        raise _damaged(path, "checkpoint.json is missing") from None
    except OSError as error:
        raise _damaged(path, f"checkpoint.json can not be read: {error.strerror}") from error
    except SealError as error:
        raise _damaged(path, f"checkpoint.json: {error}") from error
    return document


def seems_whole(path: Path) -> bool:
    """Whether a checkpoint's document is whole, and its files are there with their sizes; reads no tensor."""
    try:
        document = _document(path)
        sizes = {name: (path / name).stat().st_size for name in document["files"]}
    except (CheckpointError, OSError):
        return False
    return bool(sizes == document.get("bytes", sizes))  # the first checkpoints did not tell their sizes


def read_checkpoint(path: Path) -> Checkpoint:
    """Read and verify one checkpoint. Raises CheckpointError naming what is damaged."""
    step, progress, files = read_summary(path)
    tensors: dict[str, Tensors] = {}
    for name, expected in files.items():
        try:
            if sha256_file(path / name) != expected:
                raise _damaged(path, f"{name} does not match its digest")
            tensors.setdefault(name.partition(".")[0], {}).update(load((path / name).read_bytes()))
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
    """Of the checkpoints up to ``step``, remove those with ``keep_last`` newer whole ones, but not the best.

    ``step`` is the one just written. A later one was damaged when the run went on from an earlier one: it
    must not take the place of a whole one, and is replaced when the run gets there. Raises StorageError,
    CheckpointError.
    """
    newest = [path for path in checkpoint_paths(run) if path.name <= run.checkpoint(step).name]
    whole = [path for path in newest if seems_whole(path)]
    keep = _by_score(whole)[:1]
    with storage_errors("old checkpoints could not be removed", "all checkpoints are kept"):
        for path in newest:
            if path not in keep and len(whole) >= keep_last and path < whole[keep_last - 1]:
                remove_tree(path)
        for leftover in _leftovers(run, step):
            shutil.rmtree(leftover, ignore_errors=True)


def _leftovers(run: RunDir, step: int) -> Iterator[Path]:
    """What killed processes left unfinished; the run's lease makes sure that nobody is at it. Other hosts may be at
    their parts of a later step."""
    newest = run.checkpoint(step).name
    for path in run.checkpoints.iterdir():
        is_later = path.name.endswith(".part") and path.name[1:len(newest) + 1] > newest
        if path.name.startswith(".") and path.name.endswith((".partial", ".removed", ".part")) and not is_later:
            yield path
