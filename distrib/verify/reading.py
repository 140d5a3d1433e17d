"""The only reader of runs that are to be compared."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from distrib.checkpoint import checkpoint_paths, read_checkpoint
from distrib.config import load_run_experiment
from distrib.data.manifest import read_record
from distrib.errors import CheckpointError
from distrib.json_lines import RunFile
from distrib.models.weights import weights_sha256
from distrib.rundir import RunDir
from distrib.verify.judge import same_parts
from distrib.verify.record import Record, Result, State


def read_run(run: RunDir, name: str) -> Record:
    """A run's record, without its tensors; a file of which there is none tells nothing. Raises CheckpointError."""
    experiment = load_run_experiment(run)
    losses = _losses(run.metrics)
    result = _result(run.result)
    if result is not None and losses and result.step != max(losses):
        result = None  # of an end that the run went back from
    return Record(name, experiment.model_dump(mode="json"), read_record(run.dataset).dataset_sha256,
                  tuple(_starts(run.environment)), losses,
                  frozenset(int(path.name.removeprefix("step-")) for path in checkpoint_paths(run)), result)


def read_state(run: RunDir, record: Record, step: int) -> State:
    """Digests of what a run held after a step; a checkpoint is verified. Raises CheckpointError."""
    result = record.result if record.result and record.result.step == step else None
    if step not in record.checkpoints:
        assert result is not None
        return result.state
    checkpoint = read_checkpoint(run.checkpoint(step))
    if checkpoint.step != step:
        raise _damaged(checkpoint.path, f"it is that of step {checkpoint.step}")
    state = {"model": weights_sha256(checkpoint.model), "optimizer": weights_sha256(checkpoint.optimizer),
             "ema": weights_sha256(checkpoint.ema) if checkpoint.ema is not None else None}
    for part, same in same_parts(state, result.state if result else {}).items():
        if not same:
            raise _damaged(run.result, f"its digest of {part} is not that of {checkpoint.path.name}")
    return state


def compare_states(a: tuple[RunDir, Record], b: tuple[RunDir, Record], step: int,
                   warn: Callable[[str], None]) -> dict[str, bool] | None:
    """Which parts of two runs are the same after a step; None, and a warning, if one of the two can not be read."""
    try:
        return same_parts(read_state(*a, step), read_state(*b, step))
    except CheckpointError as error:
        warn(f"{error.fact}; passed over")
        return None


def _losses(path: Path) -> dict[int, float]:
    losses, file = {}, _file(path)
    for number, record in file.lines():
        if record.get("event") not in ("step", "diverged"):
            continue
        step, loss = record.get("step"), record.get("loss", float("nan"))
        if type(step) is not int or not isinstance(loss, int | float):
            raise file.damaged(f"line {number} is no step with its loss")
        losses[step] = float(loss)
    return losses


def _starts(path: Path) -> Iterator[dict[str, Any]]:
    file = _file(path)
    for number, record in file.lines():
        if type(record.get("step")) is not int:
            raise file.damaged(f"line {number} does not tell its step")
        yield record


def _result(path: Path) -> Result | None:
    file = _file(path)
    document = file.document()
    if document is None:
        return None
    step, model, ema = document.get("step"), document.get("weights_sha256"), document.get("ema_sha256")
    if type(step) is not int or not isinstance(model, str) or not isinstance(ema, str | None):
        raise file.damaged("it lacks the step or the weights' digest")
    return Result(step, {"model": model, "ema": ema})


def _file(path: Path) -> RunFile:
    return RunFile(path, "the run can not be compared")


def _damaged(path: Path, what: str) -> CheckpointError:
    return _file(path).damaged(what)
