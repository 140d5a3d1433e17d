"""Laws of folds: every sample validates once, groups whole, classes everywhere, the test untouched."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distrib.config import DataConfig, Experiment, ModelConfig
from distrib.data.folds import fold_view, load_view
from distrib.data.manifest import FILE_NAME, Manifest, Shard, ShardIndex, Split, load_manifest
from distrib.data.shards import ShardReader
from distrib.data.split import torn_groups
from distrib.documents import validate
from distrib.errors import ConfigError, DataError
from distrib.rundir import RunDir
from distrib.train.settle import Settled
from distrib.train.start import seen_validation
from tests.conftest import write_dataset


def config(**keys: Any) -> DataConfig:
    return validate(DataConfig, {"dataset": "here", **keys}, "the test")


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    """Two classes, groups of up to four samples that lie in one split, shards of up to nine."""
    splits: dict[Split, list[tuple[str, int]]] = {"train": [], "val": [], "test": []}
    for group in range(draw(st.integers(16, 40))):
        split: Split = draw(st.sampled_from(("train", "train", "val", "test")))
        splits[split] += [(f"g{group}", group % 2)] * draw(st.integers(1, 4))
    shards = []
    for split, samples in splits.items():
        for begin in range(0, len(samples), 9):
            some = samples[begin:begin + 9]
            count = len(some)
            index = ShardIndex.model_validate({
                "key": [f"{split}{begin + i}" for i in range(count)], "kind": ["png"] * count,
                "offset": list(range(count)), "length": [1] * count, "crc32": [0] * count,
                "label": [label for _, label in some], "group": [group for group, _ in some]})
            shards.append(Shard(name=f"{split}-{begin}.tar", split=split, num_samples=count, bytes=100,
                                sha256="0" * 64, index=index))
    return Manifest(classes=("a", "b"), shards=tuple(shards), preparation={})


def rows(manifest: Manifest, split: Split) -> list[tuple[str, str, int, int]]:
    """(key, group, label, offset) of a split's samples."""
    return [row for shard in manifest.shards if shard.split == split
            for row in zip(shard.index.key, shard.index.group, shard.index.label, shard.index.offset, strict=True)]


@settings(max_examples=60)
@given(manifest=manifests(), folds=st.integers(2, 4), seed=st.integers(0, 99), over=st.sampled_from(
    ("train+val", "train")))
def test_laws(manifest: Manifest, folds: int, seed: int, over: str) -> None:
    cut = {"folds": folds, "fold_seed": seed, "fold_over": over}
    try:
        views = [fold_view(manifest, config(**cut, fold=fold)) for fold in range(folds)]
    except DataError:
        assert any(len({group for _, group, label, _ in rows(manifest, "train")
                        + (rows(manifest, "val") if over == "train+val" else []) if label == one}) < folds
                   for one in (0, 1)), "refused although every class has a group for every fold"
        return
    dealt = rows(manifest, "train") + (rows(manifest, "val") if over == "train+val" else [])
    assert sorted(row for view in views for row in rows(view, "val")) == sorted(dealt), "each validates exactly once"
    for view in views:
        assert sorted(rows(view, "train") + rows(view, "val")) == sorted(dealt)
        assert not {row[1] for row in rows(view, "train")} & {row[1] for row in rows(view, "val")}, "a group is torn"
        assert {row[2] for row in rows(view, "val")} == {0, 1}
        assert rows(view, "test") == rows(manifest, "test")
        assert view.sha256 == manifest.sha256
    again = fold_view(manifest, config(**cut, fold=1))
    assert rows(again, "val") == rows(views[1], "val")


def test_a_view_reads_the_right_images(dataset: Path) -> None:
    manifest = load_manifest(dataset)
    view = fold_view(manifest, config(folds=3, fold=1))
    original = {key: crc32 for shard in manifest.shards
                for key, crc32 in zip(shard.index.key, shard.index.crc32, strict=True)}
    for split in ("train", "val"):
        samples = view.samples(split)
        with ShardReader(dataset, samples) as reader:
            for number in range(len(samples)):
                reader.read(number)  # checks it
        assert all(original[key] == crc32 for shard in samples.shards
                   for key, crc32 in zip(shard.index.key, shard.index.crc32, strict=True))
    groups = [*view.samples("train").groups, *view.samples("val").groups]
    splits: list[Split] = ["train" for _ in view.samples("train").keys]
    splits += ["val" for _ in view.samples("val").keys]
    assert torn_groups(groups, splits) == []


def test_what_is_no_fold() -> None:
    assert config(folds=3).fold is None
    for keys in ({"fold": 0}, {"folds": 3, "fold": 3}, {"folds": 1, "fold": 0}):
        with pytest.raises(ConfigError):
            config(**keys)


def test_too_few_groups_for_so_many_folds(dataset: Path) -> None:
    with pytest.raises(DataError, match=r"too few groups .* for 99 folds in class .*Take fewer data\.folds"):
        fold_view(load_manifest(dataset), config(folds=99, fold=0))


def test_a_start_that_was_trained_on_what_now_validates_is_told(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "data", train=24, val=12, classes=2)
    manifest = load_manifest(dataset)
    shards = tuple(shard.model_copy(update={"index": shard.index.model_copy(update={
        "group": tuple(f"{shard.split}-{group}" for group in shard.index.group)})}) for shard in manifest.shards)
    (dataset / FILE_NAME).write_bytes(manifest.model_copy(update={"shards": shards}).to_bytes())

    def told(then: dict[str, Any], now: dict[str, Any], seal: str | None = None) -> str | None:
        data = config(**now | {"dataset": dataset})
        settled = Settled(RunDir(tmp_path / "run"), Experiment(data=data, model=ModelConfig(name="small_cnn")),
                          load_view(data), tmp_path / "first")
        return seen_validation(settled, config(**then | {"dataset": dataset}), seal or load_manifest(dataset).sha256,
                               ("angle0", "angle1"))

    fold, other = {"folds": 3, "fold": 0}, {"folds": 3, "fold": 1}
    assert told({}, {}) is None
    assert told(fold, fold) is None
    assert told(other, fold, "0" * 64) is None  # of a dataset that is not at hand
    for then, now in ((other, fold), ({}, fold), (fold, {})):
        assert re.match(r"warning: \d+ of 12 validation samples are of groups or images that .*first was trained on",
                        told(then, now) or "")
