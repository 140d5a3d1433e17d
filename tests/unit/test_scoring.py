"""Scoring a split: each sample once, the same bits at any number of ranks, threads and workers."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from distrib.data.manifest import load_manifest
from distrib.data.shards import ShardReader
from distrib.data.transform import EvalTransform
from distrib.errors import DataError, DistribError, DivergedError, ShardError
from distrib.scoring import Forward, Images, Logits, SumOverRanks, alone, compute_threads, score_split

SIDE = 8


def forward_of(seen: list[int] | None = None) -> Forward:
    """Depends on the whole batch, as floating-point kernels may: another batch would show."""
    weights = np.random.default_rng(0).normal(size=(SIDE * SIDE * 3, 3)).astype(np.float32)

    def forward(images_NHWC: Images) -> Logits:
        if seen is not None:
            seen.append(len(images_NHWC))
        flat = images_NHWC.reshape(len(images_NHWC), -1).astype(np.float32) / 255
        result: Logits = (flat @ weights + flat.mean() / 1000).astype(np.float32)
        return result

    return forward


def score(folder: Path, forward: Forward, *, rank: int = 0, size: int = 1, batch: int = 7, threads: int = 2,
          workers: int = 1, sum_over_ranks: SumOverRanks = alone) -> Logits:
    samples = load_manifest(folder).samples("val")
    with ShardReader(folder, samples) as reader:
        return score_split(forward, reader, samples, EvalTransform(SIDE), batch=batch, rank=rank, size=size,
                           decode_threads=threads, workers=workers, sum_over_ranks=sum_over_ranks)


def in_world(size: int, part: Callable[[int, SumOverRanks], Logits]) -> list[Logits | DistribError]:
    """Runs ``part`` as every rank, in threads that meet at the sum."""
    barrier, arrays = threading.Barrier(size, timeout=60), [np.zeros(0, np.float32)] * size
    results: list[Logits | DistribError] = [DistribError("did not end")] * size

    def run(rank: int) -> None:
        def sum_over_ranks(values: NDArray[np.float32]) -> NDArray[np.float32]:
            arrays[rank] = values
            barrier.wait()
            total: Logits = np.stack(arrays).sum(axis=0, dtype=np.float32)
            return total

        try:
            results[rank] = part(rank, sum_over_ranks)
        except DistribError as error:
            results[rank] = error

    ranks = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in ranks:
        thread.start()
    for thread in ranks:
        thread.join(timeout=60)
    return results


@pytest.mark.parametrize("size", [1, 2, 3, 8])  # 8: more ranks than batches
def test_the_world_size_does_not_change_a_bit(dataset: Path, size: int) -> None:
    expected = score(dataset, forward_of())
    assert expected.shape == (30, 3)
    results = in_world(size, lambda rank, total: score(dataset, forward_of(), rank=rank, size=size,
                                                       sum_over_ranks=total))
    for result in results:
        assert isinstance(result, np.ndarray)
        assert result.tobytes() == expected.tobytes()


def test_each_sample_is_scored_once_in_split_order(dataset: Path) -> None:
    seen: list[int] = []
    logits = score(dataset, forward_of(seen), batch=7)
    assert seen == [7, 7, 7, 7, 2]
    manifest = load_manifest(dataset)
    samples = manifest.samples("val")
    transform, plain = EvalTransform(SIDE), forward_of()
    with ShardReader(dataset, samples) as reader:
        for begin in range(0, 30, 7):
            images = np.stack([transform(reader.read(i), reader.kind(i)) for i in range(begin, min(begin + 7, 30))])
            assert np.array_equal(logits[begin:begin + 7], plain(images))


@pytest.mark.parametrize(("threads", "workers"), [(1, 1), (4, 1), (1, 3), (3, 2)])
def test_threads_and_workers_do_not_change_a_bit(dataset: Path, threads: int, workers: int) -> None:
    result = score(dataset, forward_of(), threads=threads, workers=workers)
    assert result.tobytes() == score(dataset, forward_of()).tobytes()


def test_negative_zero_is_zero_at_any_world_size(dataset: Path) -> None:
    result = score(dataset, lambda images: np.full((len(images), 3), -0.0, dtype=np.float32))
    assert not np.signbit(result).any()


def damage(folder: Path, sample: int) -> str:
    """Spoil one validation sample on disk; returns its key."""
    samples = load_manifest(folder).samples("val")
    shard, position = samples.locate(sample)
    path = folder / samples.shards[shard].name
    content = bytearray(path.read_bytes())
    content[samples.shards[shard].index.offset[position] + 30] ^= 255
    path.write_bytes(content)
    return samples.keys[sample]


def test_a_broken_sample_stops_every_rank_with_an_error(make_dataset: Callable[..., Path]) -> None:
    folder = make_dataset()
    key = damage(folder, 8)  # batch 1, rank 1
    first, second = in_world(2, lambda rank, total: score(folder, forward_of(), rank=rank, size=2,
                                                          sum_over_ranks=total))
    assert isinstance(second, ShardError)
    assert key in str(second)
    assert "checksum" in str(second)
    assert isinstance(first, DataError)
    assert "another rank" in str(first)


def test_an_image_that_does_not_decode_names_shard_and_key(dataset: Path) -> None:
    samples = load_manifest(dataset).samples("val")

    def refuse(content: bytes, kind: str) -> Images:
        raise ValueError("no image at all")

    with ShardReader(dataset, samples) as reader, pytest.raises(ShardError, match=r"'val00000' at byte .*val-000000.tar"
                                                                r" can not be decoded: no image at all"):
        score_split(forward_of(), reader, samples, refuse, batch=4)


def test_a_logit_that_is_no_number_is_an_error_naming_the_sample(dataset: Path) -> None:
    calls = iter(range(100))

    def forward(images_NHWC: Images) -> Logits:
        result = np.zeros((len(images_NHWC), 3), dtype=np.float32)
        if next(calls) == 1:
            result[2, 1] = np.nan
        return result

    with pytest.raises(DivergedError, match="'val00009'"):
        score(dataset, forward, batch=7)


def test_a_fault_of_the_model_is_not_hidden(dataset: Path) -> None:
    def forward(images_NHWC: Images) -> Logits:
        raise RuntimeError("a bug")

    before = threading.active_count()
    with pytest.raises(RuntimeError, match="a bug"):
        score(dataset, forward)
    assert threading.active_count() == before


def test_progress_counts_this_ranks_samples(dataset: Path) -> None:
    samples = load_manifest(dataset).samples("val")
    heard: list[int] = []
    with ShardReader(dataset, samples) as reader:
        score_split(forward_of(), reader, samples, EvalTransform(SIDE), batch=7, rank=1, size=2, progress=heard.append)
    assert heard == [7, 14]


@pytest.mark.parametrize(("value", "expected"), [("1", 1), ("1,4", 1), ("0", None), ("many", None), ("", None),
                                                 ("9999", None)])
def test_compute_threads(monkeypatch: pytest.MonkeyPatch, value: str, expected: int | None) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1, 2})
    assert compute_threads() == (expected or 3)
