"""Decoded batches for the lanes of one rank, a few steps ahead of the training loop.

Images are decoded by threads: the decoders release the interpreter lock, so there is no need for
worker processes, shared memory or copies between them.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from distrib.data.decode import Pixels
from distrib.data.manifest import SplitSamples
from distrib.data.order import LaneBatch, Order, reading_plan
from distrib.data.shards import ShardReader

_IMAGES_A_TASK = 8  # small enough to spread one lane over the threads, large enough to hide queueing

TrainingTransform = Callable[[bytes, str, int, int], Pixels]
"""(content, kind, epoch, sample) -> uint8 [S, S, 3]; raises ValueError if the image is broken."""


@dataclass(frozen=True)
class Batch:
    """One lane's micro-batch."""

    lane: int
    images_NHWC: NDArray[np.uint8]
    labels_N: NDArray[np.int64]
    samples_N: NDArray[np.int64]


class Stream:
    """Batches of the lanes ``lanes`` for steps ``first_step``, ``first_step`` + 1, ... ``last_step`` - 1.

    They come as `reading_plan` says: a step at a time or, with ``local_steps`` > 1, a lane's step at a time.
    Memory: at most ``prefetch_steps`` + 1 steps of decoded images. A context manager: leaving it ends the
    threads.
    """

    def __init__(self, reader: ShardReader, samples: SplitSamples, order: Order, transform: TrainingTransform, *,
                 side: int, lanes: Sequence[int], first_step: int, last_step: int, threads: int,
                 prefetch_steps: int, local_steps: int = 1) -> None:
        self._reader, self._samples, self._order, self._transform = reader, samples, order, transform
        self._side = side
        self._plan = reading_plan(lanes, first_step, last_step, local_steps)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
        self._ahead: deque[list[tuple[Batch, list[Future[None]]]]] = deque()
        for _ in range(prefetch_steps if local_steps == 1 else prefetch_steps * len(lanes)):
            self._schedule()

    def take(self) -> list[Batch]:
        """The next batches of the plan, in lane order; waits for them. Raises ShardError on a broken sample."""
        self._schedule()
        batches: list[Batch] = []
        for batch, decoding in self._ahead.popleft():
            for part in decoding:
                part.result()
            batches.append(batch)
        return batches

    def close(self) -> None:
        """Drop what is ahead and end the threads."""
        self._ahead.clear()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()

    def _schedule(self) -> None:
        for pairs in itertools.islice(self._plan, 1):
            self._ahead.append([self._start(lane, self._order.batch(step, lane)) for step, lane in pairs])

    def _start(self, lane: int, chosen: LaneBatch) -> tuple[Batch, list[Future[None]]]:
        count = len(chosen.samples)
        images_NHWC = np.empty((count, self._side, self._side, 3), dtype=np.uint8)
        parts = [slice(begin, begin + _IMAGES_A_TASK) for begin in range(0, count, _IMAGES_A_TASK)]
        decoding = [self._pool.submit(self._decode, chosen, images_NHWC, part) for part in parts]
        return Batch(lane, images_NHWC, self._samples.labels[chosen.samples], chosen.samples), decoding

    def _decode(self, chosen: LaneBatch, images_NHWC: NDArray[np.uint8], part: slice) -> None:
        for place in range(*part.indices(len(chosen.samples))):
            sample, epoch = int(chosen.samples[place]), int(chosen.epochs[place])
            content = self._reader.read(sample)
            try:
                images_NHWC[place] = self._transform(content, self._reader.kind(sample), epoch, sample)
            except ValueError as error:
                raise self._reader.error(sample, f"can not be decoded: {error}") from error
