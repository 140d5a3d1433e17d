"""One checkpoint written by several hosts at once: all hold the whole state, so each writes a part of its tensors.

A writer other than the leader puts its part into a folder ``.step-000000100.KEY.2.part`` beside the checkpoints, its
document last. The leader takes the parts that come in time and hold what it holds itself, bit by bit, and writes the
others: a host that dies, a bit that flips there, or storage that shows files late, costs time and no checkpoint.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from distrib.checkpoint import Checkpoint, Part, Tensors, files_of, read_back, write_files
from distrib.durable import SealError, open_sealed, replace_file, seal
from distrib.rundir import RunDir
from distrib.tensor_file import tensors_sha256

FORMAT = "distrib-checkpoint-part/1"
DOCUMENT = "part.json"
PATIENCE_S = 2.0
_POLL_S, _MOST_POLL_S = 0.02, 0.25


@dataclass(frozen=True)
class Writers:
    """The hosts that write a run's checkpoints, of which this is number ``number``; the leader's is 0."""

    count: int = 1
    number: int = 0
    key: str = ""
    """Of this view of the run: parts of an earlier one are not taken."""
    hosts: tuple[str, ...] = ()
    """Each one's, for messages."""

    def name(self, number: int) -> str:
        """Of a writer, in words."""
        return self.hosts[number] if number < len(self.hosts) else f"host number {number}"


ALONE = Writers()


def share_tensors(sizes: Mapping[tuple[str, str], int], writers: int) -> list[list[tuple[str, str]]]:
    """What each writer writes, of tensors with so many bytes: the largest first, to who has least (Graham 1969: the
    most that one has is at most 4/3 of the best)."""
    shares: list[list[tuple[str, str]]] = [[] for _ in range(writers)]
    loads = [0] * writers
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        least = loads.index(min(loads))
        shares[least].append(name)
        loads[least] += sizes[name]
    return shares


def part_of(checkpoint: Checkpoint, writers: int, number: int) -> Part:
    """The files of one writer: name -> tensors. The leader's has every kind, if only an empty file of it."""
    if writers == 1:
        return files_of(checkpoint.kinds)
    sizes = {(kind, name): tensor.nbytes for kind, tensors in checkpoint.kinds.items()
             for name, tensor in tensors.items()}
    chosen: dict[str, Tensors] = {kind: {} for kind in checkpoint.kinds}
    for kind, name in share_tensors(sizes, writers)[number]:
        chosen[kind][name] = checkpoint.kinds[kind][name]
    return files_of({kind: tensors for kind, tensors in chosen.items() if tensors or number == 0},
                    f"{number + 1}-of-{writers}.")


def write_all_parts(run: RunDir, staging: Path, checkpoint: Checkpoint, writers: Writers,
                    tell: Callable[[str, str], None] = lambda *_: None) -> dict[str, str]:
    """Every file of a checkpoint, into ``staging``: name -> SHA-256. Raises OSError.

    ``tell``: of a host, and what was wrong with its part; empty if it was right.
    """
    begun = time.monotonic()
    files = write_files(staging, part_of(checkpoint, writers.count, 0))
    deadline = time.monotonic() + max(PATIENCE_S, 2 * (time.monotonic() - begun))
    for number in range(1, writers.count):
        part = part_of(checkpoint, writers.count, number)
        folder = _folder(run, checkpoint.step, writers.key, number)
        expected = {name: tensors_sha256(tensors) for name, tensors in part.items()}
        wrong = _take(folder, staging, expected, deadline)
        files |= write_files(staging, part) if wrong else expected
        tell(writers.name(number), wrong)
        shutil.rmtree(folder, ignore_errors=True)
    return files


def remove_parts(run: RunDir) -> None:
    """Remove what came too late, when nobody writes any more. Raises nothing."""
    for folder in run.checkpoints.glob(".*.part"):
        shutil.rmtree(folder, ignore_errors=True)


def _take(folder: Path, staging: Path, expected: Mapping[str, str], deadline: float) -> str:
    """Move another writer's files: name -> SHA-256. What is wrong with them, in words; empty if nothing is."""
    pause_s = _POLL_S
    while not _is_there(folder):
        if time.monotonic() > deadline:
            return "did not come in time"
        time.sleep(pause_s)
        pause_s = min(1.5 * pause_s, _MOST_POLL_S)
    try:
        files = open_sealed((folder / DOCUMENT).read_bytes(), FORMAT)["files"]
        if files != expected:
            return "is not of the state that this host holds: a bit flipped there or here"
        for name, digest in expected.items():
            os.rename(folder / name, staging / name)
            if read_back(staging / name) != digest:
                return "is not on the disk as it was written"
    except (OSError, SealError, KeyError) as error:
        return f"can not be read: {error}"
    return ""


def _is_there(folder: Path) -> bool:
    """Asked by listing: what a network file system once did not find it takes for absent long after, but when a
    folder is opened it asks the server again."""
    try:
        return folder.name in os.listdir(folder.parent) and DOCUMENT in os.listdir(folder)
    except OSError:
        return False


def _folder(run: RunDir, step: int, key: str, number: int) -> Path:
    final = run.checkpoint(step)
    return final.with_name(f".{final.name}.{key}.{number + 1}.part")


class PartWriter:
    """Writes a host's part of checkpoints in a thread, one at a time. What it does not write, the leader does."""

    def __init__(self, run: RunDir, writers: Writers) -> None:
        self._run, self._writers = run, writers
        self._thread: threading.Thread | None = None

    def submit(self, _step: int, make: Callable[[], Checkpoint], *, last: bool = False) -> None:
        """As `distrib.checkpoint_writer.CheckpointWriter.submit`; fails in silence."""
        if self._thread is not None and self._thread.is_alive():
            if not last:
                return
            self._thread.join()
        self._thread = threading.Thread(target=self._write, args=(make(),), name="checkpoint part")
        self._thread.start()

    def wait(self) -> None:
        """Wait until nothing is being written."""
        if self._thread is not None:
            self._thread.join()

    def settle(self) -> None:
        """Wait; it knows of no whole checkpoint."""
        self.wait()

    def _write(self, checkpoint: Checkpoint) -> None:
        writers = self._writers
        folder = _folder(self._run, checkpoint.step, writers.key, writers.number)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            files = write_files(folder, part_of(checkpoint, writers.count, writers.number))
            replace_file(folder / DOCUMENT, seal(FORMAT, {"files": files}))
        except OSError:
            shutil.rmtree(folder, ignore_errors=True)
