"""Checkpoints written behind the training's back, on storage that may fail or be slow."""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from distrib.checkpoint import Checkpoint, checkpoint_paths, prune, seems_whole, write_checkpoint
from distrib.checkpoint_parts import ALONE, Writers, write_all_parts
from distrib.errors import CheckpointError, DistribError, StorageError, WorldError, storage_errors
from distrib.rundir import RunDir


class CheckpointWriter:
    """Writes snapshots in a thread, one at a time, on storage that may fail or be slow while training goes on.

    Failures are told once, and so is that it works again. Only the last checkpoint of a run must be on the disk.
    """

    def __init__(self, run: RunDir, keep_last: int, tell: Callable[[str], None], patience_s: float = 10.0,
                 permitted: Callable[[], bool] = lambda: True, writers: Writers = ALONE) -> None:
        """``permitted``: whether this process may still write, looked up before each checkpoint; it may raise
        OSError. ``tell`` shows the user a line, and is called from the thread too. ``patience_s`` is how long
        training waits for a checkpoint that takes longer than until the next is due, before it skips that one.
        ``writers``: the hosts that write, this one first; they change with the view."""
        self._run, self._keep_last, self._tell = run, keep_last, tell
        self._patience_s = self._left_s = patience_s
        self._permitted, self.writers = permitted, writers
        self._thread: threading.Thread | None = None
        self._step, self._begun = 0, 0.0
        self._skipped: list[int] = []
        self._missed: list[int] = []
        self._told: int | None = None
        self._failure: StorageError | None = None
        self._fault: Exception | None = None
        self._written: int | None = None
        self._prune_told = False
        self._parts: dict[str, str] = {}

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
                self._check_permitted()
            write_checkpoint(self._run, checkpoint, partial(self._write_parts, checkpoint, self.writers))
        except StorageError as error:
            self._failed(checkpoint, error, last)
        else:
            self._works(checkpoint.step)
            self._prune(checkpoint.step)

    def _write_parts(self, checkpoint: Checkpoint, writers: Writers, staging: Path) -> dict[str, str]:
        files = write_all_parts(self._run, staging, checkpoint, writers, partial(self._tell_of_part, checkpoint.step))
        self._check_permitted()  # this process may have been stopped meanwhile, for however long
        return files

    def _check_permitted(self) -> None:
        if not self._permitted():
            raise WorldError(f"another training took over the run folder {self._run.root}",
                             "this one wrote nothing more into it", "let the other one go on")

    def _tell_of_part(self, step: int, host: str, wrong: str) -> None:
        """Each host's lateness once, until it is in time again; what is worse, always."""
        before, self._parts[host] = self._parts.get(host, ""), wrong
        if wrong and (wrong != before or "in time" not in wrong):
            self._tell(f"warning: the part of the checkpoint of step {step} that {host} was to write {wrong}; "
                       "this host wrote it")

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
        needed = sum(tensor.nbytes for tensors in checkpoint.kinds.values() for tensor in tensors.values())
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
