"""Checkpoints: whole or absent, verified when written and read, written behind the training's back.

A checkpoint is a folder ``checkpoints/step-000000100`` of safetensors files and ``checkpoint.json``, a
sealed document with the step, the progress and each file's SHA-256. It gets its name by a rename, after
everything in it is on the disk.
"""

from __future__ import annotations

import errno
import json
import math
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from distrib.durable import SealError, open_sealed, publish_dir, remove_tree, seal, sha256_file, write_durable
from distrib.errors import CheckpointError, DistribError, StorageError, storage_errors
from distrib.rundir import RunDir
from distrib.tensor_file import write_tensors

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
    """Write, read back and publish a checkpoint, in the place of one of the same step. Raises StorageError."""
    final = run.checkpoint(checkpoint.step)
    staging = final.with_name(f".{final.name}.{os.getpid()}.partial")
    with storage_errors(f"the checkpoint of step {checkpoint.step} could not be written",
                        "the checkpoints before it are whole"):
        try:
            run.checkpoints.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(staging, ignore_errors=True)  # of a killed process that had our id: in containers ids repeat
            staging.mkdir()
            files, sizes = {}, {}
            for name, tensors in (("model", checkpoint.model), ("optimizer", checkpoint.optimizer),
                                  ("ema", checkpoint.ema)):
                if tensors is not None:
                    path = staging / f"{name}.safetensors"
                    files[path.name] = write_tensors(path, tensors)
                    sizes[path.name] = path.stat().st_size
                    if _read_back(path) != files[path.name]:
                        raise OSError(errno.EIO, "what was read back is not what was written", path.name)
            body = {"step": checkpoint.step, "files": files, "bytes": sizes, "progress": checkpoint.progress}
            write_durable(staging / "checkpoint.json", seal(FORMAT, body, indent=1))
            if final.exists():  # a damaged one that was passed over, or an older attempt at this step
                remove_tree(final)
            publish_dir(staging, final)
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            raise
    return final


def _read_back(path: Path) -> str:
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
        for leftover in _leftovers(run):
            shutil.rmtree(leftover, ignore_errors=True)


def _leftovers(run: RunDir) -> Iterator[Path]:
    """What a killed process left unfinished; the run's lock makes sure that nobody is at it."""
    for path in run.checkpoints.iterdir():
        if path.name.startswith(".") and path.name.endswith((".partial", ".removed")):
            yield path


class CheckpointWriter:
    """Writes snapshots in a thread, one at a time, on storage that may fail or be slow while training goes on.

    Failures are told once, and so is that it works again. Only the last checkpoint of a run must be on the disk.
    """

    def __init__(self, run: RunDir, keep_last: int, tell: Callable[[str], None], patience_s: float = 10.0,
                 permitted: Callable[[], bool] = lambda: True) -> None:
        """``permitted``: whether this process may still write, looked up before each checkpoint; it may raise
        OSError. ``tell`` shows the user a line, and is called from the thread too. ``patience_s`` is how long
        training waits for a checkpoint that takes longer than until the next is due, before it skips that one."""
        self._run, self._keep_last, self._tell = run, keep_last, tell
        self._patience_s = self._left_s = patience_s
        self._permitted = permitted
        self._thread: threading.Thread | None = None
        self._step, self._begun = 0, 0.0
        self._skipped: list[int] = []
        self._missed: list[int] = []
        self._told: int | None = None
        self._failure: StorageError | None = None
        self._fault: Exception | None = None
        self._written: int | None = None
        self._prune_told = False

    def submit(self, step: int, make: Callable[[], Checkpoint], *, last: bool = False) -> None:
        """Begin to write what ``make`` returns, a snapshot of clones.

        While the one before is still being written this one is skipped with a note, once patience is at an end; the
        ``last`` one of a run waits. Raises no StorageError, only faults of this program.
        """
        if not self._is_free(step, last):
            return
        checkpoint = make()
        json.dumps(checkpoint.progress, allow_nan=False)  # a mistake shows here, not in the thread
        self._step, self._begun, self._skipped = step, time.monotonic(), []
        self._thread = threading.Thread(target=self._write, args=(checkpoint, last), name="checkpoint")
        self._thread.start()

    def wait(self) -> None:
        """Wait until nothing is being written. Raises StorageError if the newest that was due is not on the disk."""
        self.settle()
        self._raise_fault()
        if self._failure is not None:
            raise self._failure

    def settle(self) -> int | None:
        """Wait, whatever comes of it; the step of the newest checkpoint written so far, None if there is none."""
        if self._thread is not None:
            self._thread.join(self._patience_s)
            if self._thread.is_alive():
                self._tell(f"note: the checkpoint of step {self._step} is still being written; waiting for it")
                self._thread.join()
            self._thread = None
        return self._written

    def _is_free(self, step: int, last: bool) -> bool:
        if last:
            self.settle()
        elif self._thread is not None and self._thread.is_alive():
            self._thread.join(self._left_s)
            if self._thread.is_alive():
                self._skip(step)
                return False
        else:
            self._left_s = self._patience_s
        self._raise_fault()
        return True

    def _skip(self, step: int) -> None:
        if not self._skipped:
            self._tell(f"note: the storage is slow: the checkpoint of step {self._step} is still being written after "
                       f"{time.monotonic() - self._begun:.0f} s. That of step {step} is skipped, as are those that are "
                       "due until it is written, so that training need not wait")
        self._skipped.append(step)
        self._left_s = 0.0

    def _raise_fault(self) -> None:
        if self._fault is not None:
            fault, self._fault = self._fault, None
            raise fault

    def _write(self, checkpoint: Checkpoint, last: bool) -> None:
        try:
            self._try(checkpoint, last)
        except Exception as error:  # a fault of ours: training must not go on as if it had been written
            self._fault = error

    def _try(self, checkpoint: Checkpoint, last: bool) -> None:
        try:
            with storage_errors(f"the checkpoint of step {checkpoint.step} could not be written", ""):
                _check_there(self._run)
                if not self._permitted():
                    raise CheckpointError(f"another training took over the run folder {self._run.root}",
                                          "this one wrote nothing more into it", "let the other one go on")
            write_checkpoint(self._run, checkpoint)
        except StorageError as error:
            self._failed(checkpoint, error, last)
        else:
            self._works(checkpoint.step)
            self._prune(checkpoint.step)

    def _works(self, step: int) -> None:
        if self._missed:
            self._tell(f"note: checkpoints can be written again: that of step {step} is; {_those(self._missed)} "
                       "could not be")
        if self._skipped:
            self._tell(f"note: the checkpoint of step {step} is written, after {time.monotonic() - self._begun:.0f} s; "
                       f"{_those(self._skipped)} skipped meanwhile")
        self._written, self._failure, self._missed = step, None, []

    def _failed(self, checkpoint: Checkpoint, error: StorageError, last: bool) -> None:
        step, cause = checkpoint.step, error.__cause__
        number = cause.errno if isinstance(cause, OSError) else None
        newest = _newest_whole(self._run, step)
        remedy = _remedy(self._run, checkpoint, number) or error.remedy
        self._failure = StorageError(
            f"the last checkpoint, of step {step}, is not on the disk: {error.fact.partition(': ')[2]}",
            "the run has no whole checkpoint and would begin anew" if newest is None else
            f"nothing older is lost: the newest whole checkpoint is that of step {newest}",
            f"{remedy}; then start the same command again" + ("" if newest is None else ", to go on from there"))
        if not last and (not self._missed or self._told != number):
            there = "there is no whole one yet" if newest is None else f"the newest whole one is that of step {newest}"
            self._tell("warning: " + StorageError(
                error.fact, f"training goes on and tries again at the next checkpoint; {there}", remedy).one_line())
        self._told = number
        self._missed.append(step)

    def _prune(self, step: int) -> None:
        try:
            prune(self._run, self._keep_last, step)
            self._prune_told = False
        except DistribError as error:
            if not self._prune_told:
                self._tell(f"warning: {error.one_line()}")
            self._prune_told = True


def _check_there(run: RunDir) -> None:
    """Raises OSError if the run's folder is gone: what is found in its place is not to be written into."""
    try:
        os.stat(run.experiment)
    except (FileNotFoundError, NotADirectoryError):
        raise OSError(errno.ENOENT, f"the run's folder {run.root} is gone, removed or unmounted") from None


def _newest_whole(run: RunDir, step: int) -> int | None:
    """Step of the newest checkpoint up to ``step`` that seems whole."""
    try:
        paths = checkpoint_paths(run)
    except CheckpointError:
        return None
    return next((int(path.name.removeprefix("step-")) for path in paths
                 if path.name <= run.checkpoint(step).name and seems_whole(path)), None)


def _remedy(run: RunDir, checkpoint: Checkpoint, number: int | None) -> str | None:
    """What helps against an error of the file system while a run goes on; None: what always does."""
    if number in (errno.ENOSPC, errno.EDQUOT):
        tensors = (checkpoint.model, checkpoint.optimizer, checkpoint.ema or {})
        needed = sum(tensor.nbytes for group in tensors for tensor in group.values())
        try:
            free = f"{math.floor(shutil.disk_usage(run.root).free / 1e5) / 10:.1f} MB are free"
        except OSError:
            free = "nobody knows how much is free"
        return (f"free some {'space' if number == errno.ENOSPC else 'of your quota'}: a checkpoint needs "
                f"{math.ceil(needed / 1e5) / 10:.1f} MB, and {free} in {run.root}")
    return {errno.EROFS: f"have the file system of {run.root} mounted for writing again",
            errno.ENOENT: f"bring {run.root} back, with what was in it"}.get(number or 0)


def _those(steps: list[int]) -> str:
    if len(steps) == 1:
        return f"that of step {steps[0]}"
    return f"{len(steps)}, of steps {steps[0]} to {steps[-1]},"
