"""Logits of a whole split, each sample once, over all ranks, the same bits at any world size.

Batches are fixed by the split and the batch size alone, so a sample always meets the same neighbours; only
who computes a batch depends on the ranks.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distrib.data.manifest import SplitSamples
from distrib.data.shards import ShardReader
from distrib.errors import DataError, DivergedError

Images = NDArray[np.uint8]
Logits = NDArray[np.float32]
Forward = Callable[[Images], Logits]
"""uint8 images_NHWC (RGB) -> float32 logits_NK. Local."""
Transform = Callable[[bytes, str], Images]
"""(content, kind) -> uint8 [S, S, 3]; raises ValueError if the image is broken."""
SumOverRanks = Callable[[Logits], Logits]
"""Element-wise sum over the ranks; collective."""

_BATCHES_AHEAD = 2  # bounds the memory: at most this many decoded batches, and one in use a worker


def alone(values: Logits) -> Logits:
    """The sum over the ranks of a world of one."""
    return values


def compute_threads() -> int:
    """Cores that this process may use: its affinity, and OMP_NUM_THREADS where that is lower."""
    cores = len(os.sched_getaffinity(0))
    wished = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    return max(1, min(cores, int(wished))) if wished.isdigit() and int(wished) else cores


def score_split(forward: Forward, reader: ShardReader, samples: SplitSamples, transform: Transform, *, batch: int,
                rank: int = 0, size: int = 1, decode_threads: int = 1, workers: int = 1,
                sum_over_ranks: SumOverRanks = alone, num_columns: int | None = None,
                progress: Callable[[int], None] | None = None) -> Logits:
    """logits_NK of every sample in split order, equal on all ranks. Collective: one sum over the ranks.

    Batch k holds samples k * batch and on; rank k % size computes it (the last may be smaller). ``workers``
    above 1 calls ``forward`` from that many threads at once. ``progress`` hears how many this rank has done.
    ``num_columns``: what ``forward`` gives for a sample, where that is not one logit a class.

    Raises ShardError for a broken sample and DivergedError for a logit that is no finite number; where it
    happened on another rank only, DataError, so that no rank is left waiting.
    """
    num_samples, num_columns = len(samples), num_columns or len(samples.classes)
    # The last element counts the ranks that failed: they must reach the sum too.
    flat = np.zeros(num_samples * num_columns + 1, dtype=np.float32)
    logits_NK = flat[:-1].reshape(num_samples, num_columns)
    mine = [np.arange(begin, min(begin + batch, num_samples))
            for begin in range(rank * batch, num_samples, size * batch)]
    failure: Exception | None = None
    done = 0
    try:
        for numbers, part_NK in _scored(forward, reader, transform, mine, decode_threads, workers):
            logits_NK[numbers] = part_NK
            done += len(numbers)
            if progress is not None:
                progress(done)
    except Exception as error:
        failure, flat[-1] = error, 1.0
    flat = sum_over_ranks(flat)
    if failure is not None:
        raise failure
    if flat[-1]:
        raise DataError(f"scoring the {samples.split} split failed on another rank", "there is no complete result",
                        "see that rank's message")
    logits_NK = flat[:-1].reshape(num_samples, num_columns) + np.float32(0)  # -0.0 and 0.0 become one
    finite_N = np.isfinite(logits_NK).all(axis=1)
    if not finite_N.all():
        raise DivergedError(f"the model's output for sample {samples.keys[int(finite_N.argmin())]!r} is not a finite "
                            f"number (so for {int((~finite_N).sum())} of {num_samples})", "it can not be judged",
                            "use an earlier checkpoint, or train with a lower train.lr")
    return logits_NK


def _scored(forward: Forward, reader: ShardReader, transform: Transform, batches: list[NDArray[np.int64]],
            decode_threads: int, workers: int) -> Iterator[tuple[NDArray[np.int64], Logits]]:
    """(sample numbers, their logits) of each batch, in order."""

    def pixels(sample: int) -> Images:
        content = reader.read(sample)
        try:
            return transform(content, reader.kind(sample))
        except ValueError as error:
            raise reader.error(sample, f"can not be decoded: {error}") from error

    def computed(decoding: list[Future[Images]]) -> Logits:
        return forward(np.stack([part.result() for part in decoding]))

    decoders = ThreadPoolExecutor(decode_threads, thread_name_prefix="decode")
    computers = ThreadPoolExecutor(workers, thread_name_prefix="forward") if workers > 1 else None
    ahead: deque[tuple[NDArray[np.int64], Callable[[], Logits]]] = deque()
    waiting = iter(batches)
    try:
        while True:
            while len(ahead) < _BATCHES_AHEAD + workers - 1 and (numbers := next(waiting, None)) is not None:
                decoding = [decoders.submit(pixels, int(sample)) for sample in numbers]
                if computers is None:  # in the caller's thread, whose compute threads are warm
                    ahead.append((numbers, partial(computed, decoding)))
                else:
                    ahead.append((numbers, computers.submit(computed, decoding).result))
            if not ahead:
                return
            numbers, result = ahead.popleft()
            yield numbers, result()
    finally:
        decoders.shutdown(wait=True, cancel_futures=True)
        if computers is not None:
            computers.shutdown(wait=True, cancel_futures=True)


def spread_images(folder: Path, samples: SplitSamples, transform: Transform,
                  wanted: int) -> tuple[list[str], Images]:
    """(keys, images_NHWC) of so many samples, or all, at equal distances over a split. Raises ShardError."""
    chosen = np.unique(np.linspace(0, len(samples) - 1, min(wanted, len(samples))).round().astype(int))
    images = []
    with ShardReader(folder, samples) as reader:
        for sample in map(int, chosen):
            try:
                images.append(transform(reader.read(sample), reader.kind(sample)))
            except ValueError as error:
                raise reader.error(sample, f"can not be decoded: {error}") from error
    return [samples.keys[sample] for sample in chosen], np.stack(images)
