"""Proof of sameness: two runs, or a run and its replay."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from distrib.errors import CheckpointError, storage_errors
from distrib.rundir import RunDir
from distrib.verify.judge import judge
from distrib.verify.reading import compare_states, read_run
from distrib.verify.record import Record
from distrib.verify.replay import replay
from distrib.verify.words import reasons, verdict_line

Tell = Callable[[str], None]


def run_verify(run: Path, other: Path, tell: Tell) -> dict[str, Any]:
    """Compare two runs; returns what `verify --json` prints. Damaged checkpoints are named through ``tell``.

    Raises CheckpointError if they can not be compared.
    """
    a, b = (read_run(RunDir(root), str(root)) for root in (run, other))
    return _compared((RunDir(run), a), (RunDir(other), b), tell)


def run_replay(run: Path, *, steps: int | None, keep: Path | None, data: Path | None, tell: Tell) -> dict[str, Any]:
    """Compare a run with its replay, up to ``steps`` or to its end. Raises any DistribError.

    ``keep`` is the replay's folder, else it is temporary; ``data`` another folder of the same dataset.
    """
    whole = read_run(RunDir(run), str(run))
    if not whole.last_step:
        raise CheckpointError(f"{run} has done no step yet", "there is nothing to replay", "let it train first")
    last_step = min(steps or whole.last_step, whole.last_step)
    record = whole.up_to(last_step)
    with storage_errors("no temporary folder could be made", "nothing was replayed"):
        temporary = tempfile.TemporaryDirectory(prefix="distrib-replay-")
    with temporary as scratch:
        again = RunDir(keep or Path(scratch) / "run")
        if record.experiment["model"]["start"] is not None:
            with storage_errors("the starting weights could not be copied", "nothing was replayed"):
                again.root.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(RunDir(run).start, again.start)
        replay(record, again, last_step, data=data, scratch=Path(scratch), tell=tell)
        copy = read_run(again, str(keep) if keep else "its replay").up_to(last_step)
        return _compared((RunDir(run), record), (again, copy), tell)


def _compared(a: tuple[RunDir, Record], b: tuple[RunDir, Record], tell: Tell) -> dict[str, Any]:
    verdict = judge(a[1], b[1], lambda step: compare_states(a, b, step, tell))
    return {**verdict, "reason": "; ".join((verdict_line(verdict), *reasons(verdict)))}
