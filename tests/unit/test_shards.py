from __future__ import annotations

import os
import tarfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from distrib.data.manifest import SplitSamples, load_manifest
from distrib.data.shards import ShardReader
from distrib.errors import ShardError

MakeDataset = Callable[..., Path]


def training(folder: Path) -> SplitSamples:
    return load_manifest(folder).samples("train")


def truth(folder: Path, samples: SplitSamples) -> list[bytes]:
    """Every image as tarfile reads it."""
    contents = []
    for shard in samples.shards:
        with tarfile.open(folder / shard.name) as tar:
            by_key = {member.name: tar.extractfile(member) for member in tar}
            for key, kind in zip(shard.index.key, shard.index.kind, strict=True):
                file = by_key[f"{key}.{kind}"]
                assert file is not None
                contents.append(file.read())
    return contents


def open_shards(folder: Path) -> int:
    """Shards of a folder that this process has open."""
    count = 0
    for fd in os.listdir("/proc/self/fd"):
        try:
            count += os.readlink(f"/proc/self/fd/{fd}").startswith(f"{folder}/")
        except FileNotFoundError:  # the listing's own
            continue
    return count


def test_every_image_is_read_as_it_lies_in_the_shard(dataset: Path) -> None:
    samples = training(dataset)
    with ShardReader(dataset, samples) as reader:
        assert [reader.read(i) for i in range(len(samples))] == truth(dataset, samples)
        assert {reader.kind(i) for i in range(len(samples))} == {"png"}
    assert open_shards(dataset) == 0


@pytest.mark.parametrize("max_open", [1, 2, 4])
def test_no_more_shards_are_open_than_allowed_and_the_latest_stay(dataset: Path, max_open: int,
                                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    samples = training(dataset)
    assert len(samples.shards) == 5
    opened: list[str] = []
    real_open = os.open

    def counted(path: Path, flags: int) -> int:
        opened.append(Path(path).name)
        return real_open(path, flags)

    monkeypatch.setattr(os, "open", counted)
    used: list[int] = []
    with ShardReader(dataset, samples, max_open=max_open) as reader:
        for number in np.random.default_rng(0).integers(0, 5, 60).tolist():
            before = len(opened)
            reader.read(int(samples.starts[number]))
            recent = list(dict.fromkeys(reversed(used)))[:max_open]
            assert (len(opened) == before) == (number in recent)  # those used last are the ones kept
            assert open_shards(dataset) <= max_open
            used.append(number)
    assert open_shards(dataset) == 0


def test_many_threads_share_a_reader(dataset: Path) -> None:
    samples = training(dataset)
    expected = truth(dataset, samples)
    numbers = np.random.default_rng(0).integers(0, len(samples), 3000).tolist()
    with ShardReader(dataset, samples, max_open=1) as reader, ThreadPoolExecutor(8) as pool:
        for number, content in zip(numbers, pool.map(reader.read, numbers), strict=True):
            assert content == expected[number]
    assert open_shards(dataset) == 0


def refusal(folder: Path, samples: SplitSamples, sample: int) -> ShardError:
    with ShardReader(folder, samples) as reader:
        with pytest.raises(ShardError) as caught:
            reader.read(sample)
        number, _ = samples.locate(sample)
        neighbour = int(samples.starts[(number + 1) % len(samples.shards)])
        assert reader.read(neighbour)  # one broken shard spoils no other
    assert open_shards(folder) == 0
    assert caught.value.remedy
    return caught.value


def test_any_flipped_byte_of_an_image_is_found_and_named(make_dataset: MakeDataset) -> None:
    folder = make_dataset()
    samples = training(folder)
    shard = samples.shards[1]
    path = folder / shard.name
    whole = path.read_bytes()
    start, length = shard.index.offset[3], shard.index.length[3]
    sample = int(samples.starts[1]) + 3
    for place in (start, start + length // 2, start + length - 1):
        damaged = bytearray(whole)
        damaged[place] ^= 0x10
        path.write_bytes(damaged)
        fact = refusal(folder, samples, sample).fact
        assert f"sample {shard.index.key[3]!r} at byte {start} of shard {path}" in fact
        assert "checksum" in fact
    damaged = bytearray(whole)
    damaged[start - 1] ^= 0x10  # the header before it is not the image
    path.write_bytes(damaged)
    with ShardReader(folder, samples) as reader:
        assert reader.read(sample) == whole[start : start + length]


def test_a_shard_that_was_cut_off_is_named(make_dataset: MakeDataset) -> None:
    folder = make_dataset()
    samples = training(folder)
    shard = samples.shards[0]
    cut = shard.index.offset[5] + shard.index.length[5] - 10
    os.truncate(folder / shard.name, cut)
    assert f"10 of {shard.index.length[5]} bytes are missing" in refusal(folder, samples, 5).fact
    with ShardReader(folder, samples) as reader:
        assert reader.read(4)


def test_a_shard_that_is_gone_is_named(make_dataset: MakeDataset) -> None:
    folder = make_dataset()
    samples = training(folder)
    path = folder / samples.shards[0].name
    path.unlink()
    assert f"shard {path} can not be opened: No such file" in refusal(folder, samples, 0).fact
    path.mkdir()
    assert "can not be read: Is a directory" in refusal(folder, samples, 0).fact


def test_a_closed_reader_leaves_reads_under_way_alone(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = training(dataset)
    reader = ShardReader(dataset, samples)
    real_pread = os.pread

    def closing(fd: int, length: int, offset: int) -> bytes:
        reader.close()
        return real_pread(fd, length, offset)

    monkeypatch.setattr(os, "pread", closing)
    assert reader.read(7) == truth(dataset, samples)[7]
    assert open_shards(dataset) == 0


def test_short_reads_are_continued(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = training(dataset)
    real_pread = os.pread
    monkeypatch.setattr(os, "pread", lambda fd, length, offset: real_pread(fd, min(length, 100), offset))
    with ShardReader(dataset, samples) as reader:
        assert reader.read(7) == truth(dataset, samples)[7]
