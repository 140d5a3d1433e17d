"""The stream gives what direct reading gives, whatever its threads and prefetching do."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from distrib.data.decode import Pixels
from distrib.data.manifest import SplitSamples, load_manifest
from distrib.data.order import LaneBatch, Order, ShuffledOrder, reading_plan
from distrib.data.shards import ShardReader
from distrib.data.stream import Batch, Stream
from distrib.data.transform import TrainTransform
from distrib.errors import ShardError

SIDE, LANES, LANE_BATCH = 8, 3, 11  # more than one task a lane
TRANSFORM = TrainTransform(SIDE, 0, 0.4, 1.3, True, True, 30.0, 0.1, 0.1)
Transform = Callable[[bytes, str, int, int], Pixels]


@pytest.fixture
def samples(dataset: Path) -> SplitSamples:
    return load_manifest(dataset).samples("train")


class Watched:
    """An order that notes the steps asked for."""

    def __init__(self, order: Order) -> None:
        self.order, self.steps = order, set[int]()

    def batch(self, step: int, lane: int) -> LaneBatch:
        self.steps.add(step)
        return self.order.batch(step, lane)


class Counted:
    """An order that counts the batches asked for."""

    def __init__(self, order: Order) -> None:
        self.order, self.batches = order, 0

    def batch(self, step: int, lane: int) -> LaneBatch:
        self.batches += 1
        return self.order.batch(step, lane)


def order_of(samples: SplitSamples) -> ShuffledOrder:
    return ShuffledOrder(samples.shard_sizes, lanes=LANES, lane_batch=LANE_BATCH, seed=1, shuffle_shards=2)


def stream_of(reader: ShardReader, samples: SplitSamples, *, order: Order | None = None,
              transform: Transform = TRANSFORM, lanes: Sequence[int] = range(LANES), first_step: int = 0,
              last_step: int = 6, threads: int = 2, prefetch_steps: int = 2, local_steps: int = 1) -> Stream:
    return Stream(reader, samples, order or order_of(samples), transform, side=SIDE, lanes=lanes,
                  first_step=first_step, last_step=last_step, threads=threads, prefetch_steps=prefetch_steps,
                  local_steps=local_steps)


def directly(reader: ShardReader, samples: SplitSamples, step: int, lane: int) -> Batch:
    """A batch without threads."""
    chosen = order_of(samples).batch(step, lane)
    pairs = zip(chosen.epochs.tolist(), chosen.samples.tolist(), strict=True)
    images = [TRANSFORM(reader.read(i), reader.kind(i), epoch, i) for epoch, i in pairs]
    return Batch(lane, np.stack(images), samples.labels[chosen.samples], chosen.samples)


@pytest.mark.parametrize(("threads", "prefetch_steps", "first_step", "lanes"), [
    (1, 1, 0, [0, 1, 2]), (3, 1, 0, [0, 1, 2]), (2, 4, 0, [1]), (1, 16, 3, [2, 0]), (4, 2, 5, [0, 1, 2]),
])
def test_batches_are_those_read_directly(dataset: Path, samples: SplitSamples, threads: int, prefetch_steps: int,
                                         first_step: int, lanes: list[int]) -> None:
    with ShardReader(dataset, samples) as reader, stream_of(
            reader, samples, threads=threads, prefetch_steps=prefetch_steps, first_step=first_step,
            lanes=lanes) as stream:
        for step in range(first_step, 6):
            batches = stream.take()
            assert [batch.lane for batch in batches] == lanes
            for batch in batches:
                expected = directly(reader, samples, step, batch.lane)
                assert batch.images_NHWC.dtype == np.uint8
                assert batch.images_NHWC.shape == (LANE_BATCH, SIDE, SIDE, 3)
                np.testing.assert_array_equal(batch.images_NHWC, expected.images_NHWC)
                np.testing.assert_array_equal(batch.labels_N, expected.labels_N)
                np.testing.assert_array_equal(batch.samples_N, expected.samples_N)


@pytest.mark.parametrize("prefetch_steps", [1, 2, 5])
def test_no_more_steps_are_begun_than_promised(dataset: Path, samples: SplitSamples, prefetch_steps: int) -> None:
    order = Watched(order_of(samples))
    with ShardReader(dataset, samples) as reader, stream_of(reader, samples, order=order, last_step=10,
                                                            prefetch_steps=prefetch_steps) as stream:
        assert order.steps == set(range(prefetch_steps))
        for step in range(10):
            stream.take()
            # This step's images and at most `prefetch_steps` more.
            assert order.steps == set(range(min(10, step + 1 + prefetch_steps)))


def test_local_steps_come_lane_by_lane_in_no_more_memory(dataset: Path, samples: SplitSamples) -> None:
    order = Counted(order_of(samples))
    with ShardReader(dataset, samples) as reader, stream_of(reader, samples, order=order, local_steps=4) as stream:
        for taken, (step, lane) in enumerate(pair for pairs in reading_plan(range(LANES), 0, 6, 4) for pair in pairs):
            assert order.batches <= taken + 2 * LANES
            (batch,) = stream.take()
            assert batch.lane == lane
            np.testing.assert_array_equal(batch.images_NHWC, directly(reader, samples, step, lane).images_NHWC)
        assert taken == 6 * LANES - 1


def test_a_broken_sample_stops_its_own_step_and_is_named(dataset: Path, samples: SplitSamples) -> None:
    broken = int(order_of(samples).batch(3, 1).samples[9])
    epoch = int(order_of(samples).batch(3, 1).epochs[9])

    def transform(content: bytes, kind: str, at_epoch: int, sample: int) -> Pixels:
        if (at_epoch, sample) == (epoch, broken):
            raise ValueError("no end of image")
        return TRANSFORM(content, kind, at_epoch, sample)

    with ShardReader(dataset, samples) as reader, stream_of(reader, samples, transform=transform,
                                                            prefetch_steps=3) as stream:
        for _ in range(3):
            stream.take()
        with pytest.raises(ShardError) as caught:
            stream.take()
    number, position = samples.locate(broken)
    shard = samples.shards[number]
    fact = caught.value.fact
    assert repr(samples.keys[broken]) in fact
    assert f"at byte {shard.index.offset[position]} of shard {dataset / shard.name}" in fact
    assert "can not be decoded: no end of image" in fact


def test_a_png_cut_inside_its_pixels_is_named(make_dataset: Callable[..., Path]) -> None:
    # The checksum holds, as it would in a shard that was adopted: only the decoder can tell.
    folder = make_dataset()
    samples = load_manifest(folder).samples("train")

    def cut(content: bytes, kind: str, epoch: int, sample: int) -> Pixels:
        return TRANSFORM(content[: len(content) // 2] if sample == 4 else content, kind, epoch, sample)

    with ShardReader(folder, samples) as reader, stream_of(reader, samples, transform=cut) as stream:
        with pytest.raises(ShardError, match=f"sample {samples.keys[4]!r}.* can not be decoded") as caught:
            deque(iter(stream.take, None))
        assert caught.value.remedy


def decoders() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("decode")]


@pytest.mark.parametrize("taken", [0, 1, 6])
def test_threads_are_as_many_as_asked_and_end_with_the_stream(dataset: Path, samples: SplitSamples,
                                                              taken: int) -> None:
    seen: set[str] = set()

    def transform(content: bytes, kind: str, epoch: int, sample: int) -> Pixels:
        seen.add(threading.current_thread().name)
        assert len(decoders()) <= 2
        return TRANSFORM(content, kind, epoch, sample)

    with ShardReader(dataset, samples) as reader:
        with stream_of(reader, samples, transform=transform, prefetch_steps=4) as stream:
            for _ in range(taken):
                stream.take()
        assert not decoders()
    assert all(name.startswith("decode") for name in seen)


def test_closing_drops_what_was_not_begun(dataset: Path, samples: SplitSamples,
                                          monkeypatch: pytest.MonkeyPatch) -> None:
    begun, proceed, decoded = threading.Event(), threading.Event(), []
    real_shutdown = ThreadPoolExecutor.shutdown

    def slow(content: bytes, kind: str, epoch: int, sample: int) -> Pixels:
        begun.set()
        assert proceed.wait(60)
        decoded.append(sample)
        return TRANSFORM(content, kind, epoch, sample)

    def shutdown(pool: ThreadPoolExecutor, wait: bool = True, *, cancel_futures: bool = False) -> None:
        real_shutdown(pool, wait=False, cancel_futures=cancel_futures)
        proceed.set()  # the one thread goes on only now, with whatever is left to do
        real_shutdown(pool, wait=wait)

    monkeypatch.setattr(ThreadPoolExecutor, "shutdown", shutdown)
    with ShardReader(dataset, samples) as reader, stream_of(reader, samples, transform=slow, threads=1):
        assert begun.wait(60)
    assert not decoders()
    assert 0 < len(decoded) < LANE_BATCH  # the task that had begun, out of two steps of three lanes


def test_an_error_ends_the_threads_too(dataset: Path, samples: SplitSamples) -> None:
    def broken(content: bytes, kind: str, epoch: int, sample: int) -> Pixels:
        raise ValueError("broken")

    with ShardReader(dataset, samples) as reader:
        with pytest.raises(ShardError), stream_of(reader, samples, transform=broken) as stream:
            stream.take()
        assert not decoders()
