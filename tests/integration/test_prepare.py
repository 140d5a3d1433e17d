"""`distrib prepare` on real files: right shards, the same bytes every time, nothing half done."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from distrib.data.decode import decode_rgb
from distrib.data.fields import read_fields
from distrib.data.ingest import IngestOptions, ingest
from distrib.data.inspect import inspect_dataset
from distrib.data.manifest import SPLITS, load_manifest
from distrib.data.prepare import run_prepare
from distrib.data.shards import ShardReader
from distrib.errors import ConfigError, DataError, ShardError, StorageError

Start = Callable[..., "subprocess.Popen[str]"]


def picture(number: int, side: int = 24) -> Image.Image:
    """No two alike."""
    rng = np.random.default_rng(number)
    small = Image.fromarray(rng.integers(0, 255, (6, 6, 3), dtype=np.uint8))
    return small.resize((side, side + number % 5), Image.Resampling.BICUBIC)


def class_folders(folder: Path, count: int = 40, side: int = 24) -> Path:
    for number in range(count):
        path = folder / ("cat", "dog")[number % 2] / f"photo {number:03d}.{('jpg', 'png')[number % 3 == 0]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(number, side).save(path)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_what_goes_in_comes_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = class_folders(tmp_path / "source")
    report = run_prepare(source, tmp_path / "data", shard_samples=7, resize=20)
    assert "every image is dealt to a split by itself" in capsys.readouterr().err
    json.dumps(report)
    manifest = load_manifest(tmp_path / "data")
    assert manifest.sha256 == report["sha256"]
    assert manifest.classes == ("cat", "dog")
    assert {split: report["splits"][split]["samples"] for split in SPLITS} == {"train": 32, "val": 4, "test": 4}
    assert [shard.num_samples for shard in manifest.shards] == [7, 7, 7, 7, 4, 4, 4]
    assert [shard.name for shard in manifest.shards][-3:] == ["train-000004.tar", "val-000000.tar", "test-000000.tar"]
    options = IngestOptions.model_validate(manifest.preparation["ingest"])
    seen = set()
    for split in SPLITS:
        samples = manifest.samples(split)
        with ShardReader(tmp_path / "data", samples) as reader:
            for i, key in enumerate(samples.keys):
                path = next(source.rglob(f"{key.rpartition('/')[2].replace('_', ' ')}.*"))
                assert manifest.classes[samples.labels[i]] == path.parent.name
                assert reader.read(i) == ingest(path.read_bytes(), "photo", options).content, "predict sees these bytes"
                assert min(decode_rgb(reader.read(i), reader.kind(i)).shape[:2]) == 20
                seen.add(path)
    assert len(seen) == 40
    assert not inspect_dataset(tmp_path / "data")["damaged"]


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # webdataset leaves the tars to the collector
def test_stock_webdataset_reads_the_shards(tmp_path: Path) -> None:
    import webdataset

    source = class_folders(tmp_path / "source")
    run_prepare(source, tmp_path / "data", image_format="png")
    manifest = load_manifest(tmp_path / "data")
    found = {}
    urls = [str(tmp_path / "data" / shard.name) for shard in manifest.shards]
    dataset = webdataset.WebDataset(urls, shardshuffle=False).decode("pil")
    for key, image, label, record in dataset.to_tuple("__key__", "jpg;png", "cls", "json"):
        assert image.mode == "RGB"
        assert manifest.classes[label] == record["label"]
        found[record["path"]] = image
        assert key == record["path"].rpartition(".")[0].replace(" ", "_")
        with Image.open(source / record["path"]) as original:
            assert (record["width"], record["height"]) == original.size
            assert np.array_equal(np.array(original), np.array(image)), "PNGs went in without loss, JPEGs as they were"
    assert len(found) == 40


def test_the_same_bytes_whatever_the_workers_and_other_ones_with_another_seed(tmp_path: Path) -> None:
    source = class_folders(tmp_path / "source", 150)
    run_prepare(source, tmp_path / "one", workers=1)
    os.utime(source / "cat" / "photo 000.png", (1, 1))
    run_prepare(source, tmp_path / "two", workers=2)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    run_prepare(source, tmp_path / "three", workers=1, seed=1)
    one, three = (load_manifest(tmp_path / name) for name in ("one", "three"))
    assert set(one.samples("test").keys) != set(three.samples("test").keys)
    assert sorted(k for s in one.shards for k in s.index.key) == sorted(k for s in three.shards for k in s.index.key)
    with tarfile.open(tmp_path / "one" / "val-000000.tar") as tar:
        assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in tar} == {(0, 0, 0, "", "", 0o644)}


def test_a_table_with_groups_and_copies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Patients of 1 to 3 images; patients 3 and 40 share a picture, byte for byte and pixel for pixel."""
    images = tmp_path / "images"
    images.mkdir()
    rows = []
    for number in range(120):
        patient = number * 3 // 5
        copied = {200: 9}.get(number, number)
        picture(copied).save(images / f"I{number:03d}.png")
        rows.append({"name": f"I{number:03d}", "patient": f"P{patient}", "bad": str(int(patient % 6 == 0))})
    (images / "I070.png").write_bytes((images / "I006.png").read_bytes())
    Image.open(images / "I001.png").save(images / "I100.bmp")
    (images / "I100.png").unlink()
    for here, there in ((70, 6), (100, 1)):
        rows[here]["bad"] = rows[there]["bad"]
    with (tmp_path / "labels.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    report = run_prepare(images, tmp_path / "data", labels=tmp_path / "labels.csv", image_column="name",
                         label_column="bad", group_column="patient", workers=1)
    assert "dealt to a split by itself" not in capsys.readouterr().err
    manifest = load_manifest(tmp_path / "data")
    places = {key: (shard.split, group) for shard in manifest.shards
              for key, group in zip(shard.index.key, shard.index.group, strict=True)}
    assert len(places) == 120
    assert report["torn_groups"] == []
    assert places["I070"] == places["I006"], "copies share a group, and so a split"
    assert places["I100"] == places["I001"]
    assert manifest.preparation["split"]["merged_groups"] == 2
    assert [d for d in manifest.duplicates if d.kind == "exact"] == []


def test_copies_across_given_splits_are_recorded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for split, start in (("train", 0), ("val", 20), ("test", 30)):
        for number in range(start, start + 10):
            path = tmp_path / "source" / split / ("cat", "dog")[number % 2] / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            picture(number, 64).save(path)
    source = tmp_path / "source"
    (source / "test" / "cat" / "30.png").write_bytes((source / "train" / "cat" / "2.png").read_bytes())
    Image.open(source / "train" / "dog" / "3.png").save(source / "test" / "dog" / "31.jpg", quality=60)
    (source / "test" / "dog" / "31.png").unlink()
    run_prepare(source, tmp_path / "data", workers=1)
    manifest = load_manifest(tmp_path / "data")
    assert [(d.kind, d.first, d.second, d.splits) for d in manifest.duplicates] == [
        ("exact", "train/cat/2", "test/cat/30", ("train", "test")),
        ("near", "train/dog/3", "test/dog/31", ("train", "test")),
    ]
    assert "test/cat/30 (test) is the same as train/cat/2 (train)" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="--split is given, but"):
        run_prepare(source, tmp_path / "other", split="0.5/0.5")


def test_torn_groups_of_given_splits_are_refused(tmp_path: Path) -> None:
    source = class_folders(tmp_path / "source", 6)
    rows = [f"{path.relative_to(source)},{path.parent.name},P{i % 3},{('train', 'test')[i // 3]}"
            for i, path in enumerate(sorted(source.rglob("*.*g")))]
    (tmp_path / "labels.csv").write_text("\n".join(["image,label,patient,fold", *rows]))
    with pytest.raises(DataError, match="3 groups are in more than one of the given splits, such as P0, P1, P2"):
        run_prepare(source, tmp_path / "data", labels=tmp_path / "labels.csv", image_column="image",
                    label_column="label", group_column="patient", split_column="fold")
    assert not (tmp_path / "data").exists()


def test_bad_images_are_all_listed_then_skipped_on_request(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = class_folders(tmp_path / "source")
    good = (source / "dog" / "photo 001.jpg").read_bytes()
    bad = {"cat/empty.jpg": b"", "cat/text.png": b"hello", "dog/cut.jpg": good[:-90], "dog/new.heic": b"\0ftypheic"}
    for name, content in bad.items():
        (source / name).write_bytes(content)
    os.mkfifo(source / "dog" / "pipe.jpg")
    with pytest.raises(DataError, match="5 of 45 images can not be used") as caught:
        run_prepare(source, tmp_path / "data")
    assert "--on-bad skip" in caught.value.remedy
    listed = capsys.readouterr().err
    assert all(name in listed for name in [*bad, "dog/pipe.jpg"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"], "nothing was written"
    run_prepare(source, tmp_path / "data", on_bad="skip")
    manifest = load_manifest(tmp_path / "data")
    assert [item.path for item in manifest.excluded] == sorted([*bad, "dog/pipe.jpg"])
    assert {item.path: item.reason for item in manifest.excluded}["cat/empty.jpg"] == "is empty (0 bytes)"
    assert sum(shard.num_samples for shard in manifest.shards) == 40


def test_one_picture_with_two_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = class_folders(tmp_path / "source")
    (source / "dog" / "copy.png").write_bytes((source / "cat" / "photo 000.png").read_bytes())
    with pytest.raises(DataError, match="2 images have two labels"):
        run_prepare(source, tmp_path / "data")
    assert "dog/copy.png: labelled 'dog', and the same image as cat/photo 000.png: 'cat'" in capsys.readouterr().err
    run_prepare(source, tmp_path / "data", on_bad="skip")
    manifest = load_manifest(tmp_path / "data")
    assert [item.path for item in manifest.excluded] == ["cat/photo 000.png", "dog/copy.png"]


def test_listed_images_that_are_not_there(tmp_path: Path) -> None:
    source = class_folders(tmp_path / "source")
    rows = [f"{path.stem},{path.parent.name}" for path in source.rglob("*.*g")]
    (tmp_path / "labels.csv").write_text("\n".join(["image,label", *rows, "gone,cat"]))
    options = {"labels": tmp_path / "labels.csv", "image_column": "image", "label_column": "label"}
    with pytest.raises(DataError, match=r"1 of 41 images can not be used .*such as gone: "):
        run_prepare(source, tmp_path / "data", **options)  # type: ignore[arg-type]
    run_prepare(source, tmp_path / "data", on_bad="skip", **options)  # type: ignore[arg-type]
    assert [item.path for item in load_manifest(tmp_path / "data").excluded] == ["gone"]


def test_shards_end_at_a_number_of_megabytes_too(tmp_path: Path) -> None:
    source = class_folders(tmp_path / "source")
    run_prepare(source, tmp_path / "data", shard_mb=0.02)
    shards = load_manifest(tmp_path / "data").shards
    assert len(shards) > 3
    assert max(shard.bytes for shard in shards) <= 20_000 + 10_240
    run_prepare(source, tmp_path / "tiny", shard_mb=1e-6)
    assert {shard.num_samples for shard in load_manifest(tmp_path / "tiny").shards} == {1}


@pytest.mark.parametrize(("options", "message"), [
    ({"resize": 0}, "resize"),
    ({"image_format": "gif"}, "format"),
    ({"quality": 1000}, "quality"),
    ({"on_bad": "ignore"}, "on_bad"),
    ({"shard_samples": 0}, "--shard-samples 0"),
    ({"shard_mb": float("nan")}, "shard_mb"),
    ({"workers": -1}, "--workers -1"),
    ({"split": "0.8/0.8"}, "adds up to 1.6"),
    ({"group_column": "patient"}, "--group-column is given without --labels"),
    ({"labels": Path("x.csv")}, "--labels needs --image-column"),
])
def test_wrong_options_are_refused(tmp_path: Path, options: dict[str, object], message: str) -> None:
    source = class_folders(tmp_path / "source", 4)
    with pytest.raises(ConfigError, match=message):
        run_prepare(source, tmp_path / "data", **options)  # type: ignore[arg-type]
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_what_is_there_is_not_overwritten(tmp_path: Path) -> None:
    source = class_folders(tmp_path / "source")
    (tmp_path / "data").mkdir()
    run_prepare(source, tmp_path / "data")  # an empty folder is as good as none
    before = contents(tmp_path / "data")
    for out in (tmp_path / "data", source):
        with pytest.raises(ConfigError, match="exists and is not an empty folder"):
            run_prepare(source, out)
    assert contents(tmp_path / "data") == before
    (tmp_path / "file").write_text("precious")
    with pytest.raises((ConfigError, StorageError)):
        run_prepare(source, tmp_path / "file")
    assert (tmp_path / "file").read_text() == "precious"


# Faults


def command(source: Path, out: Path, *options: str) -> list[str | Path]:
    return [sys.executable, "-m", "distrib", "prepare", source, "--out", out, *options]


def leftovers(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.name.endswith((".partial", ".removed"))]


def children_of(pid: int) -> list[int]:
    result = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False)
    return [int(word) for word in result.stdout.split()]


def gone(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return True
    return state == "Z"


def await_end(pids: list[int]) -> None:
    """Workers, and the multiprocessing module's resource tracker, which ends a moment after the last of them."""
    deadline = time.monotonic() + 20
    while living := [pid for pid in pids if not gone(pid)]:
        assert time.monotonic() < deadline, f"{living} outlive the run they belong to"
        time.sleep(0.02)


def test_killed_at_any_moment(tmp_path: Path, start: Start) -> None:
    """SIGKILL when the staging folder appears, in the middle of reading, and while shards are written."""
    source = class_folders(tmp_path / "source", 400, side=200)
    out = tmp_path / "data"

    def staged(pattern: str) -> bool:
        return any(path.stat().st_size > 0 for folder in leftovers(tmp_path) for path in folder.glob(pattern))

    moments: dict[str, Callable[[], bool]] = {
        "begun": lambda: bool(leftovers(tmp_path)),
        "reading": lambda: staged("*.spool"),
        "writing": lambda: staged("*.tar"),
    }
    for moment, reached in moments.items():
        process = start(*command(source, out, "--workers", "2", "--shard-samples", "3"))
        deadline = time.monotonic() + 120
        while not reached() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        children = children_of(process.pid)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate(timeout=60)
        assert not out.exists(), f"{moment}: killed, and yet something is there"
        assert len(leftovers(tmp_path)) == 1, moment
        if moment == "reading":
            assert len(children) >= 2, "the test means to kill a run with workers"
        await_end(children)
    process = start(*command(source, out, "--workers", "1", "--json"))
    output, log = process.communicate(timeout=200)
    assert process.returncode == 0, log
    assert "left behind" in log
    assert leftovers(tmp_path) == []
    assert json.loads(output)["samples"] == 400
    assert not inspect_dataset(out)["damaged"]


def test_interrupted_by_the_user(tmp_path: Path, start: Start) -> None:
    source = class_folders(tmp_path / "source", 400, side=200)
    process = start(*command(source, tmp_path / "data", "--workers", "2"))
    deadline = time.monotonic() + 120
    while not any(folder.glob("*.spool") for folder in leftovers(tmp_path)) and time.monotonic() < deadline:
        time.sleep(0.002)
    children = children_of(process.pid)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the workers too
    _, log = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGINT
    assert "Traceback" not in log
    assert leftovers(tmp_path) == []
    assert not (tmp_path / "data").exists()
    await_end(children)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    mount = tmp_path / "small"
    mount.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", mount], capture_output=True, check=False)
    if made.returncode:
        assert os.environ.get("CI") != "true", f"mounting failed: {made.stderr.decode()}"
        pytest.skip("mounting needs root")
    yield mount
    subprocess.run(["umount", mount], check=True)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_full_disk(tmp_path: Path, small_disk: Path, workers: int) -> None:
    source = class_folders(tmp_path / "source", 200, side=200)
    with pytest.raises(StorageError, match="No space left on device") as caught:
        run_prepare(source, small_disk / "data", image_format="png", workers=workers)
    assert "free some space" in caught.value.remedy
    assert list(small_disk.iterdir()) == [], "no rest takes the space that is needed"


def test_a_disk_that_fills_up_while_shards_are_written(tmp_path: Path, small_disk: Path) -> None:
    source = class_folders(tmp_path / "source", 60, side=100)
    size = sum(len(ingest(path.read_bytes(), "", IngestOptions()).content) for path in source.rglob("*.*g"))
    (small_disk / "ballast").write_bytes(bytes((1 << 20) - int(size * 1.5)))
    with pytest.raises(StorageError, match="No space left on device"):
        run_prepare(source, small_disk / "data", workers=1)
    assert [path.name for path in small_disk.iterdir()] == ["ballast"]


def test_a_folder_that_can_not_be_written(tmp_path: Path) -> None:
    source = class_folders(tmp_path / "source", 30)
    if os.geteuid() == 0:
        locked = Path("/proc/distrib-test/data")  # even root may not write there
    else:
        (tmp_path / "locked").mkdir(mode=0o500)
        locked = tmp_path / "locked" / "data"
    with pytest.raises(StorageError, match="can not be written"):
        run_prepare(source, locked)
    with pytest.raises(StorageError):
        run_prepare(source, source / "dog" / "photo 001.jpg" / "data")


def test_another_runs_staging_is_left_alone(tmp_path: Path) -> None:
    source = class_folders(tmp_path / "source")
    others = [tmp_path / ".data.elsewhere.12345.partial", tmp_path / f".data.elsewhere.{os.getpid()}.partial"]
    for folder in others:
        folder.mkdir()
    run_prepare(source, tmp_path / "data")
    assert all(folder.is_dir() for folder in others), "of another host, whose processes we do not see"


def test_errors_are_one_line_and_exit_code_2(tmp_path: Path, start: Start) -> None:
    process = start(*command(tmp_path / "nothing\nhere", tmp_path / "data"))
    output, log = process.communicate(timeout=60)
    assert process.returncode == 2
    assert output == ""
    assert "Traceback" not in log
    assert log.strip().isprintable(), "one line"


def test_columns_that_are_kept_can_be_read_again_in_the_order_of_the_split(tmp_path: Path) -> None:
    source = class_folders(tmp_path / "source", 20)
    images = sorted(path.relative_to(source).as_posix() for path in source.rglob("*.*"))
    rows = ["image,label,age,site", *(f"{name},{name[:3]},{'' if number == 4 else number},arm {number % 2}"
                                      for number, name in enumerate(images))]
    (tmp_path / "labels.csv").write_text("\n".join(rows))
    run_prepare(source, tmp_path / "data", labels=tmp_path / "labels.csv", image_column="image", label_column="label",
                kept_columns=("age", "site"), split="0.5/0.5/0")
    manifest = load_manifest(tmp_path / "data")
    assert manifest.preparation["labels"]["kept_columns"] == ["age", "site"]
    seen = 0
    for split in ("train", "val"):
        samples = manifest.samples(split)
        fields = read_fields(tmp_path / "data", samples, ["age", "site", "path"])
        for age, site, path in zip(fields["age"], fields["site"], fields["path"], strict=True):
            assert path is not None
            number = images.index(path)
            assert (age, site) == (None if number == 4 else str(number), f"arm {number % 2}")
            seen += 1
    assert seen == 20
    with pytest.raises(DataError, match=r"no sample of the val split has a field 'sex' \(they have .*age, site"):
        read_fields(tmp_path / "data", manifest.samples("val"), ["sex"])
    shard = tmp_path / "data" / manifest.samples("val").shards[0].name
    shard.write_bytes(shard.read_bytes().replace(b"arm 0", b"arm 9", 1))
    with pytest.raises(ShardError, match="does not match its digest"):
        read_fields(tmp_path / "data", manifest.samples("val"), ["site"])
