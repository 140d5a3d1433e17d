"""`distrib update`: a new version beside the old, which stays as it is; no group, copy or label slips through."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from distrib.data.inspect import inspect_dataset
from distrib.data.manifest import Manifest, load_manifest
from distrib.data.prepare import run_prepare
from distrib.data.update import run_update
from distrib.errors import ConfigError, DataError

Table = Callable[..., Path]
COLUMNS = {"image_column": "image", "label_column": "label", "group_column": "patient"}


def picture(number: int, side: int = 24) -> Image.Image:
    """No two alike."""
    rng = np.random.default_rng(number)
    small = Image.fromarray(rng.integers(0, 255, (6, 6, 3), dtype=np.uint8))
    return small.resize((side, side), Image.Resampling.BICUBIC)


def write(folder: Path, rows: list[tuple[int, str, str]], extra: list[str] | None = None) -> Path:
    """Images by (number, label, patient), and labels.csv; ``extra`` is a column that gives splits."""
    folder.mkdir(parents=True)
    lines = ["image,label,patient" + (",split" if extra else "")]
    for place, (number, label, patient) in enumerate(rows):
        picture(number).save(folder / f"{place}.png")
        lines.append(f"{place}.png,{label},{patient}" + (f",{extra[place]}" if extra else ""))
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    return folder


def rows(begin: int, end: int, first_patient: int | None = None) -> list[tuple[int, str, str]]:
    """Two images a patient, of one class."""
    shift = 0 if first_patient is None else first_patient - begin // 2
    return [(i, ("cat", "dog")[i // 2 % 2], f"p{i // 2 + shift}") for i in range(begin, end)]


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """80 images of 40 patients, in three splits. Not to be changed."""
    here = tmp_path_factory.mktemp("old")
    source = write(here / "source", rows(0, 80))
    run_prepare(source, here / "data", labels=source / "labels.csv", image_column="image", label_column="label",
                group_column="patient", resize=20, shard_samples=20, split="0.6/0.2/0.2", seed=5, workers=1)
    return here / "data"


def update(old: Path, source: Path, out: Path, **options: Any) -> dict[str, Any]:
    return run_update(old, source, out, labels=source / "labels.csv", workers=1, **(COLUMNS | options))


def contents(folder: Path) -> dict[str, tuple[bytes, int, int]]:
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns, path.stat().st_mode)
            for path in sorted(folder.iterdir())}


def places(manifest: Manifest) -> dict[str, set[str]]:
    """The splits of every group."""
    found: dict[str, set[str]] = {}
    for shard in manifest.shards:
        for group in shard.index.group:
            found.setdefault(group, set()).add(shard.split)
    return found


def patient_in(old: Path, split: str) -> str:
    return next(group for group, splits in places(load_manifest(old)).items() if splits == {split})


def test_a_new_version_keeps_the_old_one_and_its_test_split(old: Path, tmp_path: Path) -> None:
    before, first = contents(old), load_manifest(old)
    known = {split: patient_in(old, split) for split in ("train", "val", "test")}
    again = [(200 + i, "cat", patient) for i, patient in enumerate(known.values())]
    source = write(tmp_path / "new", [*rows(100, 160), *again])
    report = update(old, source, tmp_path / "v2", shard_samples=15)
    second = load_manifest(tmp_path / "v2")
    assert contents(old) == before
    assert not inspect_dataset(tmp_path / "v2")["damaged"]
    assert (second.version, second.parent, second.ancestors) == (2, first.sha256, (first.sha256,))
    assert second.shards[:len(first.shards)] == first.shards
    assert {shard.version for shard in second.shards[len(first.shards):]} == {2}
    assert all((tmp_path / "v2" / shard.name).samefile(old / shard.name) for shard in first.shards)
    assert second.samples("test").keys == first.samples("test").keys
    assert all(len(splits) == 1 for splits in places(second).values())
    assert places(second)[known["val"]] == {"val"}
    # 60 images in the parts 0.75 and 0.25, two of groups that were there; the test patient's is left out.
    assert report["new_samples"] == {"train": 45, "val": 17, "test": 0}
    assert [(item.path, "test split" in item.reason) for item in second.excluded] == [("62.png", True)]
    assert second.preparation["ingest"] == first.preparation["ingest"]

    third = update(tmp_path / "v2", write(tmp_path / "more", rows(300, 340)), tmp_path / "v3", test="grow")
    assert load_manifest(tmp_path / "v3").ancestors == (first.sha256, second.sha256)
    assert third["new_samples"] == {"train": 16, "val": 4, "test": 20}  # it had fallen behind


def test_the_same_update_gives_the_same_bytes(old: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*_: object) -> None:
        raise OSError(errno.EXDEV, "another file system")

    source = write(tmp_path / "new", rows(100, 120))
    update(old, source, tmp_path / "linked")
    monkeypatch.setattr(os, "link", no_links)
    update(old, source, tmp_path / "copied")
    linked, copied = ({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}
                      for name in ("linked", "copied"))
    assert linked == copied
    assert not (tmp_path / "copied/train-000000.tar").samefile(old / "train-000000.tar")


def test_images_that_are_there_already_are_found(old: Path, tmp_path: Path) -> None:
    source = write(tmp_path / "new", [(7, "dog", "n1"), (8, "dog", "n2"), *rows(100, 120)])
    with pytest.raises(DataError, match="2 images that the dataset has already") as refused:
        update(old, source, tmp_path / "v2")
    assert "0.png: the same image as 7 in" in str(refused.value)
    assert not (tmp_path / "v2").exists()
    assert not list(tmp_path.glob(".v2*"))
    update(old, source, tmp_path / "v2", on_bad="skip")
    reasons = {item.path: item.reason for item in load_manifest(tmp_path / "v2").excluded}
    assert reasons.keys() == {"0.png", "1.png"}
    assert "labelled 'cat' and not 'dog'" in reasons["1.png"]


def test_a_near_copy_of_a_test_image_does_not_come_into_training(old: Path, tmp_path: Path) -> None:
    group = patient_in(old, "test")
    number = 2 * int(group[1:])
    source = write(tmp_path / "new", rows(100, 120))
    picture(number).save(source / "0.jpg", quality=60)
    (source / "0.png").unlink()
    (source / "labels.csv").write_text((source / "labels.csv").read_text().replace("0.png,", "0.jpg,", 1))
    with pytest.raises(DataError, match=rf"nearly the same as {number} in test"):
        update(old, source, tmp_path / "v2")
    update(old, source, tmp_path / "v2", on_bad="skip")
    assert [item.path for item in load_manifest(tmp_path / "v2").excluded] == ["0.jpg"]


def test_a_planted_leak_is_refused(old: Path, tmp_path: Path) -> None:
    """A patient of the test split whose new images are given to training."""
    source = write(tmp_path / "new", [(300, "cat", patient_in(old, "test")), *rows(100, 104)],
                   ["train", "train", "train", "val", "val"])
    with pytest.raises(DataError, match=r"is in the test split, and 0\.png is given to train"):
        update(old, source, tmp_path / "v2", split_column="split")
    torn = write(tmp_path / "torn", [(300, "cat", "n1"), (301, "cat", "n1")], ["train", "val"])
    with pytest.raises(DataError, match=r"group n1 is in the train split, and 1\.png is given to val"):
        update(old, torn, tmp_path / "v2", split_column="split")
    with pytest.raises(ConfigError, match="grouped by 'patient', and no --group-column"):
        update(old, source, tmp_path / "v2", group_column=None)


def test_new_classes_are_appended_when_asked_for(old: Path, tmp_path: Path) -> None:
    apes = [(400 + i, "ape", f"a{i}") for i in range(8)]
    source = write(tmp_path / "new", apes)
    with pytest.raises(DataError, match="1 class is not in the dataset: ape"):
        update(old, source, tmp_path / "v2")
    report = update(old, source, tmp_path / "v2", new_classes=True, test="grow")
    assert load_manifest(tmp_path / "v2").classes == ("cat", "dog", "ape")
    assert all(report["splits"][split]["classes"]["ape"] for split in ("train", "val", "test"))
