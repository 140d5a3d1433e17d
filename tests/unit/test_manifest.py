from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distrib.data.manifest import FILE_NAME, FORMAT, Manifest, SplitSamples, class_counts, load_manifest
from distrib.durable import seal, seal_digest
from distrib.errors import ManifestError


def shard(name: str, split: str, first: int, count: int) -> dict[str, Any]:
    return {
        "name": name, "split": split, "num_samples": count, "bytes": 1000 * count, "sha256": "0" * 64,
        "index": {"key": [f"k{i}" for i in range(first, first + count)], "kind": ["png"] * count,
                  "offset": [1000 * i for i in range(count)], "length": [900] * count, "crc32": [7] * count,
                  "label": [i % 2 for i in range(first, first + count)],
                  "group": [f"g{i // 2}" for i in range(first, first + count)]},
    }


DOCUMENT: dict[str, Any] = {
    "classes": ["benign", "melanoma"],
    "shards": [shard("train-000000.tar", "train", 0, 3), shard("val-000000.tar", "val", 3, 2),
               shard("train-000001.tar", "train", 5, 4)],
    "preparation": {"seed": 0},
    "excluded": [],
    "duplicates": [],
}


def load(tmp_path: Path, document: dict[str, Any]) -> Manifest:
    (tmp_path / FILE_NAME).write_bytes(seal(FORMAT, document))
    return load_manifest(tmp_path)


def test_a_manifest_comes_back_with_its_identity(tmp_path: Path) -> None:
    manifest = load(tmp_path, DOCUMENT)
    assert manifest.classes == ("benign", "melanoma")
    assert manifest.to_bytes() == (tmp_path / FILE_NAME).read_bytes()
    assert manifest.sha256 == seal_digest(manifest.to_bytes())


def test_samples_of_a_split_are_counted_over_its_shards(tmp_path: Path) -> None:
    samples = load(tmp_path, DOCUMENT).samples("train")
    assert len(samples) == 7
    assert samples.keys == ("k0", "k1", "k2", "k5", "k6", "k7", "k8")
    assert samples.groups == ("g0", "g0", "g1", "g2", "g3", "g3", "g4")
    assert samples.labels.tolist() == [0, 1, 0, 1, 0, 1, 0]
    assert samples.shard_sizes == (3, 4)
    assert [samples.locate(i) for i in range(7)] == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (1, 3)]
    assert class_counts(samples.labels, 3).tolist() == [4, 3, 0]


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6))
def test_locate_finds_every_sample_in_order(counts: list[int]) -> None:
    document = copy.deepcopy(DOCUMENT)
    firsts = np.cumsum([0, *counts])
    document["shards"] = [shard(f"s{n}.tar", "train", int(firsts[n]), count) for n, count in enumerate(counts)]
    samples: SplitSamples = Manifest.model_validate(document).samples("train")
    placed = [samples.locate(i) for i in range(len(samples))]
    assert placed == [(n, i) for n, count in enumerate(counts) for i in range(count)]


def test_a_split_that_is_not_there_is_named_with_those_that_are(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"no 'test' split \(it has train, val\)"):
        load(tmp_path, DOCUMENT).samples("test")


def test_a_label_changed_by_hand_is_found(tmp_path: Path) -> None:
    load(tmp_path, DOCUMENT)
    path = tmp_path / FILE_NAME
    raw = path.read_bytes()
    place = raw.index(b'"label": [0') + len(b'"label": [')
    path.write_bytes(raw[:place] + b"1" + raw[place + 1 :])
    with pytest.raises(ManifestError, match=r"dataset\.json is damaged: its bytes do not match its own digest"):
        load_manifest(tmp_path)


Change = Callable[[dict[str, Any]], object]


@pytest.mark.parametrize(("change", "message"), [
    (lambda d: d["shards"][0].update(split="validation"), "split"),
    (lambda d: d["shards"][0]["index"]["length"].__setitem__(2, 1001), "train-000000.tar indexes samples past its end"),
    (lambda d: d["shards"][0]["index"]["offset"].__setitem__(0, 10**15), "past its end"),
    (lambda d: d["shards"][0]["index"]["offset"].__setitem__(0, -1), "offset"),
    (lambda d: d["shards"][0]["index"]["length"].__setitem__(0, 0), "length"),
    (lambda d: d["shards"][0]["index"]["label"].__setitem__(0, 2), "label beyond the 2 classes"),
    (lambda d: d["shards"][0]["index"]["label"].__setitem__(0, -1), "label"),
    (lambda d: d["shards"][0]["index"]["label"].__setitem__(0, 0.5), "label"),
    (lambda d: d["shards"][0]["index"]["kind"].__setitem__(0, "gif"), "kind"),
    (lambda d: d["shards"][0]["index"]["key"].pop(), "columns of the index differ in length"),
    (lambda d: d["shards"][0]["index"].pop("group"), "group"),
    (lambda d: d["shards"][0].update(num_samples=2), "says 2 samples and indexes 3"),
    (lambda d: d["shards"][0].update(num_samples=0, index={k: [] for k in d["shards"][0]["index"]}), "num_samples"),
    (lambda d: d["shards"][0].update(sha256="xyz"), "sha256"),
    (lambda d: d["shards"][1].update(name="train-000000.tar"), "a shard stands twice"),
    (lambda d: d["shards"][1]["index"]["key"].__setitem__(0, "k0"), "a sample key stands twice"),
    (lambda d: d.update(shards=[]), "shards"),
    (lambda d: d.update(classes=["only"]), "classes"),
    (lambda d: d.update(classes=["same", "same"]), "a class stands twice"),
    (lambda d: d.update(surprise=1), "surprise"),
    (lambda d: d.pop("classes"), "classes"),
])
def test_a_well_sealed_but_impossible_manifest_is_refused(tmp_path: Path, change: Change, message: str) -> None:
    document = copy.deepcopy(DOCUMENT)
    change(document)
    with pytest.raises(ManifestError) as caught:
        load(tmp_path, document)
    assert message in caught.value.fact
    assert str(tmp_path / FILE_NAME) in caught.value.fact


@pytest.mark.parametrize("name", ["../train.tar", "/etc/passwd", "a/b.tar", "..", ".hidden.tar", "", "a\0b", "a\nb",
                                  "-x.tar", "pipe:curl x", "a\\b.tar", "x" * 201])
def test_shard_names_that_are_paths_or_worse_are_refused(tmp_path: Path, name: str) -> None:
    document = copy.deepcopy(DOCUMENT)
    document["shards"][0]["name"] = name
    with pytest.raises(ManifestError, match="no plain file name"):
        load(tmp_path, document)


@pytest.mark.parametrize(("content", "message"), [
    (None, "does not exist"), (b"", "is damaged"), (b"{}", "is damaged"), (b"\xff\xfe\x00", "is damaged"),
    (seal("distrib-bundle/1", {}), "its format is 'distrib-bundle/1'"), (seal("distrib-dataset/2", {}), "dataset/2"),
])
def test_files_that_are_no_manifest(tmp_path: Path, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / FILE_NAME).write_bytes(content)
    with pytest.raises(ManifestError, match=message) as caught:
        load_manifest(tmp_path)
    assert caught.value.remedy


def test_a_folder_in_the_manifests_place(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).mkdir()
    with pytest.raises(ManifestError, match="Is a directory"):
        load_manifest(tmp_path)
