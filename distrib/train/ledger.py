"""The keys of the samples of every step and lane: proof that none was repeated or missed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from distrib.comm.group import Group
from distrib.data.stream import Batch
from distrib.errors import storage_errors
from distrib.rundir import RunDir
from distrib.train.log import keep_lines_up_to

_STOPPED = "training stopped, since a proof with gaps is none; its checkpoints are whole"


class Ledger:
    """One JSON line a step and lane, in one file a rank. A context manager; entering it is collective.

    ``committed`` are the samples of (step, lane) of the last steps up to ``first_step``: what a lost rank gave to their
    sums, and did not live to write down, is written for it.

    Raises StorageError, unlike the metrics' file: a proof with gaps is none.
    """

    def __init__(self, run: RunDir, keys: Sequence[str], group: Group, first_step: int,
                 committed: Mapping[tuple[int, int], NDArray[np.int64]] | None = None) -> None:
        self._keys = keys
        with storage_errors("the ledger could not be written", "training stopped"):
            if group.world.is_first:
                run.ledger.mkdir(exist_ok=True)
                for path in sorted(run.ledger.glob("rank-*.jsonl")):  # also of ranks that are no more
                    keep_lines_up_to(path, first_step)
                if committed:
                    self._complete(run, committed)
            group.broadcast_bytes(b"level" if group.world.is_first else None)
            self._file = (run.ledger / f"rank-{group.rank}.jsonl").open("a", buffering=1, encoding="utf-8")

    def __call__(self, step: int, batches: list[Batch]) -> None:
        with storage_errors("the ledger could not be written", _STOPPED):
            for batch in batches:
                keys = [self._keys[sample] for sample in batch.samples_N]
                self._file.write(json.dumps({"step": step, "lane": batch.lane, "keys": keys}) + "\n")

    def _complete(self, run: RunDir, committed: Mapping[tuple[int, int], NDArray[np.int64]]) -> None:
        written = {(record["step"], record["lane"]) for path in run.ledger.glob("rank-*.jsonl")
                   for record in map(json.loads, path.read_bytes().splitlines())}
        with (run.ledger / "rank-lost.jsonl").open("a", encoding="utf-8") as file:
            for (step, lane), samples in committed.items():
                if (step, lane) not in written:
                    keys = [self._keys[sample] for sample in samples]
                    file.write(json.dumps({"step": step, "lane": lane, "keys": keys}) + "\n")

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        with storage_errors("the ledger could not be written", _STOPPED):  # what the file still holds back
            self._file.close()
