"""`distrib inspect` finds every flipped byte; `distrib adopt` takes in shards of others, or says why not."""

from __future__ import annotations

import gzip
import io
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from distrib.data.adopt import run_adopt
from distrib.data.inspect import inspect_dataset, run_inspect
from distrib.data.manifest import FILE_NAME, SPLITS, load_manifest
from distrib.data.shards import ShardReader
from distrib.errors import ConfigError, DataError, DistribError, ManifestError, ShardError

MakeDataset = Callable[..., Path]
Start = Callable[..., "subprocess.Popen[str]"]


def image(number: int, format: str = "JPEG", mode: str = "RGB", **options: Any) -> bytes:
    rng = np.random.default_rng(number)
    small = Image.fromarray(rng.integers(0, 255, (6, 6, 3), dtype=np.uint8))
    with io.BytesIO() as file:
        small.resize((40, 30), Image.Resampling.BICUBIC).convert(mode).save(file, format, **options)
        return file.getvalue()


def write_tar(path: Path, members: Mapping[str, bytes], format: int = tarfile.PAX_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=format) as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(content), 1.5  # a fraction of a second: takes an extended header
            tar.addfile(info, io.BytesIO(content))
    return path


def foreign(folder: Path, per_shard: int = 6) -> Path:
    """Shards as webdataset users write them: PAX headers, .jpeg and .png, .cls and .json, keys that recur."""
    for number, name in enumerate(("data-train-0", "data-train-1", "data-valid-0")):
        members = {}
        for i in range(per_shard):
            kind = ("jpeg", "png")[i % 2]
            members[f"./{i:04d}.{kind}"] = image(number * 100 + i, "JPEG" if kind == "jpeg" else "PNG")
            members[f"./{i:04d}.cls"] = f"{i % 3}\n".encode()
            record = {"dx": ("nv", "mel", "bkl")[i % 3], "patient": f"{name}-{i // 2}", "age": 50}
            members[f"./{i:04d}.json"] = json.dumps(record).encode()
        write_tar(folder / f"{name}.tar", members)
    return folder


def flip(path: Path, position: int) -> None:
    with path.open("r+b") as file:
        file.seek(position)
        byte = file.read(1)[0]
        file.seek(position)
        file.write(bytes([byte ^ 4]))


# Inspect


def test_a_whole_dataset(make_dataset: MakeDataset, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_dataset(train=30, val=10, shard_samples=8)
    report = run_inspect(folder)
    json.dumps(report)
    assert report["damaged"] == []
    assert report["splits"]["train"]["samples"] == 30
    assert report["splits"]["val"]["classes"] == {"angle0": 4, "angle1": 3, "angle2": 3}
    assert report["sha256"] == load_manifest(folder).sha256
    assert "angle1" in capsys.readouterr().err


def test_every_kind_of_damage_is_found_and_all_of_it(make_dataset: MakeDataset,
                                                     capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_dataset(train=60, val=10, shard_samples=10)
    manifest = load_manifest(folder)
    shards = {shard.name: shard for shard in manifest.shards}
    pixels, label, header, cut, gone, longer = sorted(shards)[:6]
    index = shards[pixels].index
    flip(folder / pixels, index.offset[3] + 20)
    flip(folder / pixels, index.offset[7] + index.length[7] - 1)
    flip(folder / label, shards[label].index.offset[0] - 1000 if shards[label].index.offset[0] > 1000 else
         shards[label].bytes - 5)
    flip(folder / header, shards[header].index.offset[2] - 512 + 125)  # in the size of the member
    os.truncate(folder / cut, shards[cut].index.offset[8] + 3)
    (folder / gone).unlink()
    with (folder / longer).open("ab") as file:
        file.write(b"x")
    damaged = inspect_dataset(folder)["damaged"]
    found = {(item["shard"], item.get("key")) for item in damaged}
    assert found == {
        (pixels, index.key[3]), (pixels, index.key[7]), (pixels, None),
        (label, None),
        (header, shards[header].index.key[2]), (header, None),
        (cut, None), (cut, shards[cut].index.key[8]), (cut, shards[cut].index.key[9]),
        (gone, None),
        (longer, None),
    }
    assert all(item["offset"] == shards[item["shard"]].index.offset[shards[item["shard"]].index.key.index(item["key"])]
               for item in damaged if "key" in item)
    quick = inspect_dataset(folder, verify=False)["damaged"]
    assert {item["shard"] for item in quick} == {cut, gone, longer}
    with pytest.raises(ShardError, match="6 of 7 shards") as caught:
        run_inspect(folder)
    assert caught.value.exit_code == 2
    listed = capsys.readouterr().err
    assert f"damaged: {pixels} sample {index.key[3]!r} at byte {index.offset[3]}" in listed
    assert listed.count("damaged: ") == len(damaged)


def test_any_single_flipped_byte_of_a_shard_is_found(make_dataset: MakeDataset) -> None:
    folder = make_dataset(train=4, val=0, shard_samples=4, side=8)
    shard = load_manifest(folder).shards[0]
    for position in range(0, shard.bytes, 211):
        flip(folder / shard.name, position)
        assert inspect_dataset(folder)["damaged"], position
        flip(folder / shard.name, position)
    assert inspect_dataset(folder)["damaged"] == []


def test_an_edited_manifest_is_refused(make_dataset: MakeDataset) -> None:
    folder = make_dataset(train=12, val=6)
    text = (folder / FILE_NAME).read_text()
    edited = text.replace('"label": [0, 1', '"label": [1, 1')
    assert edited != text
    (folder / FILE_NAME).write_text(edited)
    with pytest.raises(ManifestError, match="damaged or edited"):
        run_inspect(folder)
    with pytest.raises(ManifestError, match="does not exist"):
        run_inspect(folder / "elsewhere")


def test_inspect_as_a_command(make_dataset: MakeDataset, start: Start) -> None:
    folder = make_dataset(train=12, val=6)
    process = start(sys.executable, "-m", "distrib", "inspect", folder, "--json")
    output, _ = process.communicate(timeout=60)
    assert (process.returncode, json.loads(output)["damaged"]) == (0, [])
    shard = load_manifest(folder).shards[0]
    flip(folder / shard.name, shard.index.offset[0])
    process = start(sys.executable, "-m", "distrib", "inspect", folder)
    _, log = process.communicate(timeout=60)
    assert process.returncode == 2
    assert shard.index.key[0] in log
    assert "Traceback" not in log


# Adopt


def test_shards_of_others(tmp_path: Path) -> None:
    folder = foreign(tmp_path / "shards")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    report = run_adopt(folder, workers=1)
    json.dumps(report)
    manifest = load_manifest(folder)
    assert {name: raw for name, raw in before.items() if (folder / name).read_bytes() == raw} == before
    assert manifest.preparation["adopted"] is True
    assert manifest.classes == ("0", "1", "2")
    assert [(shard.name, shard.split) for shard in manifest.shards] == [
        ("data-train-0.tar", "train"), ("data-train-1.tar", "train"), ("data-valid-0.tar", "val")]
    assert "data-train-1/0003" in manifest.shards[1].index.key, "keys that recur are told apart by their shard"
    for number, split in ((0, SPLITS[0]), (200, SPLITS[1])):
        samples = manifest.samples(split)
        with ShardReader(folder, samples) as reader:
            for i in range(6):
                assert reader.read(i) == image(number + i, "PNG" if i % 2 else "JPEG")
                assert reader.kind(i) == ("png" if i % 2 else "jpg")
                assert samples.labels[i] == i % 3
    assert not inspect_dataset(folder)["damaged"]
    with pytest.raises(ConfigError, match="are a dataset already"):
        run_adopt(folder)


def test_labels_and_groups_from_json(tmp_path: Path) -> None:
    folder = foreign(tmp_path / "shards")
    run_adopt(folder, label_field="dx", group_field="patient", workers=1)
    manifest = load_manifest(folder)
    assert manifest.classes == ("bkl", "mel", "nv")
    assert manifest.shards[0].index.label == (2, 1, 0, 2, 1, 0)
    assert manifest.shards[0].index.group[:3] == ("data-train-0-0", "data-train-0-0", "data-train-0-1")


def test_class_names_and_patterns(tmp_path: Path) -> None:
    folder = foreign(tmp_path / "shards")
    (tmp_path / "names.txt").write_text("nevus\nmelanoma\nkeratosis\nnever seen\n\n")
    run_adopt(folder, class_names=tmp_path / "names.txt", splits=["train=*-0.tar", "test=data-train-1.tar"],
              workers=1)
    manifest = load_manifest(folder)
    assert manifest.classes == ("nevus", "melanoma", "keratosis", "never seen")
    assert {shard.name: shard.split for shard in manifest.shards} == \
        {"data-train-0.tar": "train", "data-valid-0.tar": "train", "data-train-1.tar": "test"}
    assert manifest.shards[0].index.label == (0, 1, 2, 0, 1, 2)


def test_what_the_stream_would_show_wrongly_is_refused_with_the_list(
        tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = foreign(tmp_path / "shards")
    turned = Image.Exif()
    turned[0x0112] = 6
    good = image(900)
    bad = {
        "turned": (image(901, exif=turned), b"0", "EXIF orientation is 6"),
        "cmyk": (image(902, mode="CMYK"), b"0", "CMYK"),
        "cut": (good[:-60], b"0", "damaged JPEG"),
        "empty": (b"", b"0", "empty"),
        "text": (b"hello", b"0", "neither JPEG nor PNG"),
        "nolabel": (good, b"", "empty label"),
        "pickled": (good, b"\x80\x04\x95", "not UTF-8"),
    }
    members: dict[str, bytes] = {}
    for key, (raw, label, _) in bad.items():
        members |= {f"{key}.jpg": raw, f"{key}.cls": label}
    members |= {"lonely.jpg": image(903), "imageless.cls": b"1", "two.jpg": image(904), "two.png": image(905, "PNG"),
                "two.cls": b"1", "fine.jpg": image(906), "fine.cls": b"1"}
    write_tar(folder / "data-train-2.tar", members)
    with pytest.raises(DataError, match="10 of 29 samples can not be used") as caught:
        run_adopt(folder, workers=1)
    assert "--on-bad skip" in caught.value.remedy
    assert not (folder / FILE_NAME).exists()
    listed = capsys.readouterr().err
    for key, (_, _, reason) in bad.items():
        line = next(line for line in listed.splitlines() if f"data-train-2.tar:{key}:" in line)
        assert reason in line
    run_adopt(folder, on_bad="skip", workers=1)
    manifest = load_manifest(folder)
    assert len(manifest.excluded) == 10
    assert next(shard for shard in manifest.shards if shard.name == "data-train-2.tar").index.key == ("fine",)


def test_truncated_and_damaged_tars(tmp_path: Path) -> None:
    folder = foreign(tmp_path / "shards")
    path = folder / "data-train-1.tar"
    whole = path.read_bytes()
    with tarfile.open(path) as tar:
        members = tar.getmembers()
    end = members[-1].offset_data + 512 * -(-members[-1].size // 512)
    cuts = [700, members[3].offset_data + 5, members[6].offset, end - 1, end]
    for cut in cuts:
        path.write_bytes(whole[:cut])
        with pytest.raises(ShardError, match=r"data-train-1\.tar .*byte \d+"):
            run_adopt(folder, workers=1)
    broken = bytearray(whole)
    broken[members[4].offset_data - 512 + 130] ^= 0xFF
    path.write_bytes(broken)
    with pytest.raises(ShardError, match=r"no valid tar header at byte \d+|damaged at byte \d+"):
        run_adopt(folder, workers=1)
    path.write_bytes(b"not a tar at all" * 100)
    with pytest.raises(ShardError, match="byte 0"):
        run_adopt(folder, workers=1)
    path.write_bytes(b"")
    with pytest.raises(ShardError, match="byte 0"):
        run_adopt(folder, workers=1)
    path.write_bytes(gzip.compress(whole))
    with pytest.raises(ShardError, match="is compressed"):
        run_adopt(folder, workers=1)
    path.write_bytes(whole)
    (folder / "more-train.tar.gz").write_bytes(b"")
    with pytest.raises(ShardError, match=r"1 shard .* is compressed, such as more-train\.tar\.gz") as caught:
        run_adopt(folder, workers=1)
    assert "gunzip" in caught.value.remedy
    assert not (folder / FILE_NAME).exists()


def test_keys_in_two_places_are_refused(tmp_path: Path) -> None:
    write_tar(tmp_path / "s" / "train.tar", {"a.jpg": image(1), "a.cls": b"0", "b.jpg": image(2), "b.cls": b"1"})
    with tarfile.open(tmp_path / "s" / "train.tar", "a") as tar:
        info = tarfile.TarInfo("a.json")
        tar.addfile(info, io.BytesIO())
    with pytest.raises(ShardError, match="key 'a' in two places"):
        run_adopt(tmp_path / "s")


def test_torn_groups_of_others_are_refused(tmp_path: Path) -> None:
    for split, start in (("train", 0), ("test", 3)):
        members: dict[str, bytes] = {}
        for i in range(start, start + 4):
            record = json.dumps({"y": i % 2, "patient": f"P{i}"}).encode()
            members |= {f"{i}{split}.jpg": image(i), f"{i}{split}.json": record}
        write_tar(tmp_path / "s" / f"{split}.tar", members)
    with pytest.raises(DataError, match="1 group is in more than one of the given splits, such as P3"):
        run_adopt(tmp_path / "s", label_field="y", group_field="patient", workers=1)
    run_adopt(tmp_path / "s", label_field="y", workers=1)
    duplicates = load_manifest(tmp_path / "s").duplicates
    assert [(d.kind, d.first, d.second) for d in duplicates] == [("exact", "3train", "3test")]


@pytest.mark.parametrize(("options", "message"), [
    ({"splits": ["train"]}, "not of the form"),
    ({"splits": ["dev=*.tar"]}, "not of the form"),
    ({"splits": ["test=*.tar"]}, "no shard .* in the train split"),
    ({"splits": ["train=*.tar", "val=data-valid*"]}, "data-valid-0.tar belongs to is unclear"),
    ({"label_field": "diagnosis"}, "18 of 18 samples"),
    ({"label_field": "age"}, "of 1 class. "),
    ({"class_names": Path("/nonexistent/names.txt")}, "class names .* can not be read"),
    ({"on_bad": "maybe"}, "--on-bad 'maybe'"),
])
def test_wrong_options(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    folder = foreign(tmp_path / "shards")
    with pytest.raises(DistribError, match=message):
        run_adopt(folder, **{"workers": 1, **options})
    assert not (folder / FILE_NAME).exists()


def test_folders_without_shards(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no \.tar files"):
        run_adopt(tmp_path)
    with pytest.raises(DataError, match="can not be read"):
        run_adopt(tmp_path / "gone")
    write_tar(tmp_path / "shard0.tar", {})
    with pytest.raises(ConfigError, match=r"which split shard0\.tar belongs to is unclear"):
        run_adopt(tmp_path)
    with pytest.raises(DataError, match=r"holds? no samples"):
        run_adopt(tmp_path, splits=["train=*"])
