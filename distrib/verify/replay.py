"""A run trained anew, from its own resolved experiment, as a world of one on this machine."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from threading import Thread
from typing import Any, TextIO

from distrib.data.manifest import load_manifest
from distrib.errors import ConfigError, DistribError, DivergedError, storage_errors
from distrib.rundir import RunDir
from distrib.verify.record import Record

_LOOK_S = 0.1
_SPARE_CHECKPOINTS = 50  # validations that may pass between the one that is compared and the stop


def replay(record: Record, run: RunDir, last_step: int, *, data: Path | None, scratch: Path,
           tell: Callable[[str], None]) -> None:
    """Train ``record``'s experiment into ``run`` until ``last_step``, or until its own end.

    Local; shows the training's own lines through ``tell``. Raises ConfigError or ManifestError if its dataset is not
    there, DistribError if it could not be trained; a loss that diverges is an end like any other.
    """
    document = replayed_experiment(record, last_step, data)
    folder = Path(document["data"]["dataset"])
    if load_manifest(folder).sha256 != record.dataset_sha256:
        raise ConfigError(f"the dataset {folder} is not the one that {record.name} was trained on",
                          "a replay on it would show nothing", "name the folder of that dataset with --data")
    path = scratch / "experiment.yaml"
    with storage_errors("the replay's experiment could not be written", "nothing was compared"):
        path.write_text(json.dumps(document, ensure_ascii=False), encoding="utf-8")  # JSON is YAML
    _train(path, run, last_step if goes_on_after(record, last_step) else last_step + 1, tell)


def goes_on_after(record: Record, step: int) -> bool:
    """Whether a run's experiment leads further than a step: it was stopped there, or nobody asked for more."""
    return record.result is None or record.result.step > step


def replayed_experiment(record: Record, last_step: int, data: Path | None) -> dict[str, Any]:
    """The run's experiment with a checkpoint where the run has one; all keys that decide bits are its own."""
    document: dict[str, Any] = json.loads(json.dumps(record.experiment))
    if data is not None:
        document["data"]["dataset"] = str(data)
    document["comm"]["backend"], document["watch"]["every_s"], document["train"]["ledger"] = "auto", 0, False
    if goes_on_after(record, last_step):
        own = max((step for step in record.checkpoints if 0 < step <= last_step), default=0)
        document["checkpoint"]["every_steps"] = own or document["checkpoint"]["every_steps"]
        document["checkpoint"]["keep_last"] += _SPARE_CHECKPOINTS
    return document


def _train(path: Path, run: RunDir, stop_at: int, tell: Callable[[str], None]) -> None:
    """`distrib train` in a process, asked to stop once it has done ``stop_at`` steps."""
    errors: list[str] = []
    command = [sys.executable, "-m", "distrib", "train", str(path), "--run", str(run.root)]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                          text=True, errors="replace") as process:
        assert process.stderr is not None
        reader = Thread(target=_forward, args=(process.stderr, errors, tell))
        reader.start()
        try:
            asked = _stop_in_time(process, run.metrics, stop_at)
        finally:
            if process.poll() is None:  # whoever asked for the replay is gone
                process.kill()
            reader.join()
    code = process.returncode
    if code in (0, DivergedError.exit_code) or (asked and code in (128 + signal.SIGTERM, -signal.SIGTERM)):
        return
    why = errors[-1] if errors else f"its process ended with exit code {code}"
    raise DistribError(f"the replay could not be trained: {why}", "nothing was compared")


def _stop_in_time(process: subprocess.Popen[str], metrics: Path, stop_at: int) -> bool:
    """Wait for the end of a training; True if it had to be asked to stop, which it does after saving."""
    asked, place, done = False, 0, 0
    while process.poll() is None:
        if not asked:
            place, done = last_step_after(metrics, place, done)
            if asked := done >= stop_at:
                process.terminate()
        time.sleep(_LOOK_S)
    return asked


def last_step_after(metrics: Path, place: int, done: int) -> tuple[int, int]:
    """(end of the whole lines that are there now, last step in them or else ``done``), reading on from ``place``."""
    try:
        with metrics.open("rb") as file:
            file.seek(place)
            whole = file.read().rpartition(b"\n")[0]
    except FileNotFoundError:
        return place, done
    for line in whole.splitlines():
        record = json.loads(line)
        done = record["step"] if record["event"] == "step" else done
    return place + len(whole) + bool(whole), done


def _forward(stream: TextIO, errors: list[str], tell: Callable[[str], None]) -> None:
    """Show all lines but the error that a command ends with, which the caller tells in words of its own."""
    for line in stream:
        text = line.rstrip("\n")
        if text.startswith("error: "):
            errors.append(text.removeprefix("error: "))
        else:
            tell(text)
