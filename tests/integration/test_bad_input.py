"""Bad input, tried as a new user would: real commands, each answered by one clear line, with nothing lost or left.

The table of all cases with their exact answers is docs/bad-input.md. Each test compares its answer with that
page; `python tests/integration/test_bad_input.py` writes the page anew.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Protocol

import numpy as np
import pytest
from PIL import Image

from distrib.elastic.lease import Lease
from distrib.rundir import RunDir

REPOSITORY = Path(__file__).resolve().parents[2]
PAGE = REPOSITORY / "docs" / "bad-input.md"
TIMEOUT_S = 200

Make = Callable[[Path], "Held | None"]
"""Makes the bad input in a case's folder; what it returns is closed when the command has ended."""

EXPERIMENT = """\
data: {dataset: data, image_size: 16, augment: {rotate_degrees: 10}}
model: {name: small_cnn}
train: {epochs: 2, global_batch: 8, lanes: 2, lr: 0.05, precision: fp32}
evaluate: {bootstrap: 0}
checkpoint: {every_steps: 3}
comm: {timeout_s: 20}
"""
CLUSTER = "name: here\nranks_per_node: 1\nallocator: system\n"
LABELS = "image,label,patient\n"


class Held(Protocol):
    """What stays taken while the command runs."""

    def close(self) -> object: ...


def nothing(here: Path) -> None:
    """The command alone is bad input enough."""


@dataclass(frozen=True)
class Case:
    """One kind of bad input."""

    what: str
    """What is wrong, for the table."""
    command: str
    """As typed in a folder that holds the good things of `make_kit`."""
    says: str
    """Words of the answer, for the reader of this file; the page has all of it."""
    given: Make = nothing
    """What was done to the folder before."""
    code: int = 2
    leaves: tuple[str, ...] = ()
    """Patterns of paths that may be there afterwards and were not before, or changed."""
    environment: dict[str, str] = field(default_factory=dict)


def write(name: str, content: str | bytes) -> Make:
    """A file of this content."""

    def make(here: Path) -> None:
        path = here / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode(errors="surrogateescape") if isinstance(content, str) else content)

    return make


def edit(name: str, old: str | bytes, new: str | bytes) -> Make:
    """A file with every ``old`` replaced."""

    def make(here: Path) -> None:
        before = (here / name).read_bytes()
        old_bytes, new_bytes = (text.encode() if isinstance(text, str) else text for text in (old, new))
        assert old_bytes in before, f"{name} does not hold {old!r}"
        (here / name).write_bytes(before.replace(old_bytes, new_bytes))

    return make


def flip(pattern: str, place: float = 0.5) -> Make:
    """One flipped bit, at this part of their length, in all files that match."""

    def make(here: Path) -> None:
        paths = sorted(here.glob(pattern))
        assert paths, f"nothing matches {pattern}"
        for path in paths:
            content = bytearray(path.read_bytes())
            content[int(len(content) * place)] ^= 1
            path.write_bytes(content)

    return make


def cut(pattern: str, place: float = 0.5) -> Make:
    """All files that match end at this part of their length."""

    def make(here: Path) -> None:
        paths = sorted(here.glob(pattern))
        assert paths, f"nothing matches {pattern}"
        for path in paths:
            os.truncate(path, int(path.stat().st_size * place))

    return make


def removed(name: str) -> Make:
    def make(here: Path) -> None:
        path = here / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return make


def folder(name: str) -> Make:
    """An empty folder, in the place of what was there."""

    def make(here: Path) -> None:
        (here / name).unlink(missing_ok=True)
        (here / name).mkdir(parents=True)

    return make


def renamed(name: str, to: str) -> Make:
    def make(here: Path) -> None:
        (here / name).rename(here / to)

    return make


def both(*makes: Make) -> Make:
    def make(here: Path) -> None:
        for one in makes:
            one(here)

    return make


def fifo(name: str) -> Make:
    def make(here: Path) -> None:
        os.mkfifo(here / name)

    return make


def link(name: str, to: str) -> Make:
    def make(here: Path) -> None:
        (here / name).symlink_to(to)

    return make


def picture(number: int, side: int = 24) -> Image.Image:
    """No two alike; odd ones are bright."""
    rng = np.random.default_rng(number)
    low, high = ((0, 120), (120, 255))[number % 2]
    small = Image.fromarray(rng.integers(low, high, (6, 6, 3), dtype=np.uint8))
    return small.resize((side, side), Image.Resampling.BICUBIC)


def encoded(kind: str = "JPEG", number: int = 1000) -> bytes:
    with io.BytesIO() as file:
        picture(number).save(file, kind)
        return file.getvalue()


def chunk(name: bytes, body: bytes) -> bytes:
    return len(body).to_bytes(4, "big") + name + body + zlib.crc32(name + body).to_bytes(4, "big")


# A PNG of a few bytes that says it is 60,000 x 60,000 pixels large: 10 GB when decoded.
BOMB = (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", (60000).to_bytes(4, "big") * 2 + b"\x08\x02\x00\x00\x00")
        + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b""))
HTML = "<!DOCTYPE html><html><body>404 Not Found</body></html>\n"


def animation(here: Path) -> None:
    picture(0).save(here / "photos/cat/x.gif", save_all=True, append_images=[picture(1)])


def table(*rows: str, header: str = LABELS) -> Make:
    return write("labels.csv", header + "".join(f"{row}\n" for row in rows))


def full_table(here: Path) -> None:
    """Every photo with its class, and a column that differs in every row."""
    rows = [f"{path.name},{path.parent.name},p{path.stem}" for path in sorted(here.glob("photos/*/*"))]
    table(*rows)(here)


def few_per_class(here: Path) -> None:
    for path in sorted(here.glob("photos/dog/*"))[2:]:
        path.unlink()


def of_other_classes(here: Path) -> None:
    (here / "photos/dog").rename(here / "photos/bird")
    done = subprocess.run([sys.executable, "-m", "distrib", "prepare", "photos", "--out", "other"], cwd=here,
                          env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def split_otherwise(here: Path) -> None:
    done = subprocess.run([sys.executable, "-m", "distrib", "prepare", "photos", "--out", "other", "--seed", "1"],
                          cwd=here, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def given_splits(here: Path) -> None:
    for number, name in enumerate(("train", "test")):
        write(f"more/{name}/cat/{number}.jpg", encoded(number=1000 + number))(here)


def pickled(here: Path) -> None:
    import pickle

    (here / "weights.pt").write_bytes(pickle.dumps({"fc.weight": [1.0]}))


def resealed(pattern: str, change: Callable[[dict[str, object]], None]) -> Make:
    """Sealed documents changed by somebody who also corrected their digests."""

    def make(here: Path) -> None:
        from distrib.durable import seal

        paths = sorted(here.glob(pattern))
        assert paths, f"nothing matches {pattern}"
        for path in paths:
            document = json.loads(path.read_bytes())
            document.pop("sha256")
            change(document)
            path.write_bytes(seal(str(document.pop("format")), document))

    return make


def theirs(*members: tuple[str, bytes]) -> Make:
    """A shard of one sample with these members, as others write shards."""

    def make(here: Path) -> None:
        (here / "theirs").mkdir()
        with tarfile.open(here / "theirs/train.tar", "w") as tar:
            for extension, content in members or (("jpg", encoded()), ("cls", b"0")):
                member = tarfile.TarInfo(f"sample.{extension}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))

    return make


def in_an_image(here: Path, split: str = "train") -> None:
    """A flipped bit in the first image of a shard."""
    from distrib.data.manifest import load_manifest

    shard = next(shard for shard in load_manifest(here / "data").shards if shard.split == split)
    path = here / "data" / shard.name
    content = bytearray(path.read_bytes())
    content[shard.index.offset[0] + 100] ^= 1
    path.write_bytes(content)


def of_version(pattern: str, version: str) -> Make:
    """Sealed documents of another version of their format."""
    return resealed(pattern, lambda document: document.update(format=version))


def only_train(here: Path) -> None:
    """A dataset without validation and test."""

    def keep(document: dict[str, object]) -> None:
        shards = document["shards"]
        assert isinstance(shards, list)
        document["shards"] = [shard for shard in shards if shard["split"] == "train"]

    shutil.copytree(here / "data", here / "whole")
    resealed("whole/dataset.json", keep)(here)


def study(keys: str, more: str = "") -> Make:
    """A study of these keys."""
    return write("study.yaml", f"experiment: experiment.yaml\nkeys: {{{keys}}}\n{more}")


def weights_of_another_model(here: Path) -> None:
    from safetensors.numpy import save_file

    save_file({"layer1.weight": np.zeros((3, 3), dtype=np.float32)}, here / "weights.safetensors")


def environment() -> dict[str, str]:
    """As of a user's shell: nothing of a launcher, of pytest or of a terminal."""
    keep = {name: value for name, value in os.environ.items()
            if not re.match(r"RANK|WORLD_SIZE|LOCAL_|MASTER_|OMPI_|PMI|SLURM_|TORCHELASTIC|PYTEST|COLUMNS", name)}
    bin_folder = str(Path(sys.executable).parent)
    return keep | {"PATH": f"{bin_folder}:{os.environ['PATH']}", "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}


class HeldLease:
    """As another training in the same folder holds it."""

    def __init__(self, here: Path) -> None:
        self._lease = Lease(RunDir(here / "run"), "elsewhere", 10.0)
        self._lease.take(print)

    def close(self) -> None:
        self._lease.release()


def taken(port: int) -> Make:
    def make(here: Path) -> Held:
        server = socket.socket()
        server.bind(("127.0.0.1", port))
        server.listen()
        return server

    return make


PREPARE = "distrib prepare photos --out new"
BY_TABLE = f"{PREPARE} --labels labels.csv --image-column image --label-column label"
TRAIN = "distrib train experiment.yaml --run new"
GO_ON = "distrib train --run run"
UPDATE = "distrib update data more --out new"
ENSEMBLE = "distrib ensemble run run --out new"
FOLDS = "distrib ensemble experiment.yaml --out new"
TUNE = "distrib tune study.yaml --folder new"
PROMOTE = "distrib promote bundle --registry new --data data"
EVALUATE = "distrib evaluate run"
EXPORT = "distrib export run --out new"
PREDICT = "distrib predict bundle"
LAUNCH = "launch run here.yaml --"
BOTH = "launch run here.yaml --ranks 2 --logs logs --"
X = "photos/cat/x.jpg"
YAML = "experiment.yaml"

CASES: dict[str, tuple[Case, ...]] = {
    "Arguments": (
        Case("no arguments", "distrib prepare", "missing argument"),
        Case("an unknown verb", "distrib tarin", "did you mean 'train'"),
        Case("an unknown option", "distrib train experiment.yaml --lr 3", "no such option"),
        Case("an option without its value", "distrib prepare photos --out", "requires an argument"),
        Case("a word for a number", f"{PREPARE} --seed first", "valid integer"),
        Case("an argument too many", "distrib inspect data data", "unexpected"),
        Case("a required option left out", "distrib export run", "missing option"),
        Case("an empty argument, as of an unset variable", "distrib train experiment.yaml --run ''", "empty"),
        Case("nothing to train", "distrib train", "neither an experiment"),
        Case("a newline in an argument", "distrib inspect 'no\nsuch'", "no\\nsuch"),
        Case("an escape sequence in an argument", "distrib inspect '\x1b[2Jdata'", "\\x1b[2Jdata"),
        Case("bytes that are not UTF-8 in an argument", "distrib inspect 'd\udcffta'", "\\udcff"),
    ),
    "Image folders": (
        Case("no such folder", "distrib prepare nowhere --out new", "is not a folder"),
        Case("a file for the folder", "distrib prepare experiment.yaml --out new", "is not a folder"),
        Case("an empty folder", "distrib prepare empty --out new", "holds no images", folder("empty")),
        Case("images without class folders", "distrib prepare photos/cat --out new", "no class folders"),
        Case("some images outside of class folders", PREPARE, "lies in no class folder", write("photos/x.jpg", b"x")),
        Case("one class", PREPARE, "one class", removed("photos/dog")),
        Case("a class of two images", PREPARE, "too few groups", few_per_class),
        Case("an image with two labels", PREPARE, "two labels",
             both(write(X, encoded()), write("photos/dog/y.jpg", encoded()))),
        Case("the folder for the dataset is not empty", "distrib prepare photos --out photos", "not an empty folder"),
        Case("the folder for the dataset lies in a file", "distrib prepare photos --out experiment.yaml/new",
             "Not a directory"),
        Case("the folder for the dataset can not be made", "distrib prepare photos --out /proc/new",
             "can not be written"),
        Case("no room for the dataset", f"prlimit --fsize=20000 {PREPARE}", "too large"),
        Case("a quality above 100", f"{PREPARE} --quality 101", "quality"),
        Case("a size of 0", f"{PREPARE} --resize 0", "resize"),
        Case("an unknown format", f"{PREPARE} --format webp", "format"),
        Case("splits that do not add up", f"{PREPARE} --split 0.8/0.8", "adds up to"),
        Case("splits that are no numbers", f"{PREPARE} --split most/some", "not numbers"),
        Case("splits of nan", f"{PREPARE} --split nan/nan", "two or three parts"),
        Case("shards of 0 samples", f"{PREPARE} --shard-samples 0", "above 0"),
        Case("shards of nan megabytes", f"{PREPARE} --shard-mb nan", "finite"),
        Case("shards of 1e308 megabytes", f"{PREPARE} --shard-mb 1e308", "shard"),
        Case("no worker", f"{PREPARE} --workers 0", "above 0"),
        Case("an unknown --on-bad", f"{PREPARE} --on-bad ignore", "on_bad"),
    ),
    "Images": (
        Case("an empty file", PREPARE, "is empty", write(X, b"")),
        Case("a web page named .jpg", PREPARE, "not an image", write(X, HTML)),
        Case("a JPEG that is cut off", PREPARE, "damaged JPEG", both(write(X, encoded()), cut(X, 0.9))),
        Case("a PNG with a flipped bit", PREPARE, "checksum", both(write(X, encoded("PNG")), flip(X))),
        Case("a decompression bomb", PREPARE, "million", write(X, BOMB)),
        Case("an animation", PREPARE, "several frames", animation),
        Case("an image of a format that is not read", PREPARE, "x.heic", write("photos/cat/x.heic", b"ftypheic")),
        Case("an SVG", PREPARE, "x.svg", write("photos/cat/x.svg", "<svg/>")),
        Case("a named pipe", PREPARE, "regular file", fifo(X)),
        Case("a link to nothing", PREPARE, "No such file", link(X, "nothing")),
        Case("a link to itself", PREPARE, "symbolic links", link(X, "x.jpg")),
        Case("a broken image whose name holds an escape sequence", PREPARE, "\\x1b",
             write("photos/cat/\x1b[2J\n.jpg", b"x")),
        Case("a broken image whose name is not UTF-8", PREPARE, "is empty", write("photos/cat/\udcff.jpg", b"")),
    ),
    "Labels": (
        Case("no such table", BY_TABLE, "can not be read"),
        Case("a folder for the table", BY_TABLE, "Is a directory", folder("labels.csv")),
        Case("--labels without its columns", f"{PREPARE} --labels labels.csv", "--image-column", full_table),
        Case("columns without --labels", f"{PREPARE} --label-column label", "without --labels"),
        Case("an empty table", BY_TABLE, "is empty", write("labels.csv", "")),
        Case("a header without rows", BY_TABLE, "no rows", table()),
        Case("a spreadsheet", BY_TABLE, "spreadsheet", write("labels.csv", b"PK\x03\x04")),
        Case("bytes that are not UTF-8", BY_TABLE, "UTF-8", table("000.jpg,caf\udce9,1")),
        Case("an unknown column", BY_TABLE.replace("--label-column label", "--label-column lable"), "no column",
             full_table),
        Case("an unknown column to keep", f"{BY_TABLE} --keep-column age", "no column 'age'", full_table),
        Case("a column to keep without --labels", f"{PREPARE} --keep-column age", "without --labels"),
        Case("the wrong column: a class for every image", BY_TABLE.replace("column label", "column patient"),
             "too few groups", full_table),
        Case("a row with a field too few", BY_TABLE, "fields", table("000.jpg")),
        Case("a quote that is never closed", BY_TABLE, "no valid CSV", table('"000.jpg,cat,1')),
        Case("a header of one endless field", BY_TABLE, "CSV", write("labels.csv", "x" * 200_000)),
        Case("a row without a label", BY_TABLE, "without 'label'", table("000.jpg,,1")),
        Case("an image that stands twice", BY_TABLE, "stand twice", table("000.jpg,cat,1", "000.jpg,dog,1")),
        Case("images that are not there", BY_TABLE, "none of the", table("a.jpg,cat,1", "b.jpg,dog,2")),
        Case("a path that leads out of the folder", BY_TABLE, "lead out", table("../experiment.yaml,cat,1")),
        Case("a name of two files", BY_TABLE, "several files",
             both(write("photos/dog/000.jpg", encoded()), table("000.jpg,cat,1"))),
        Case("an unknown split", f"{BY_TABLE} --split-column patient", "other than train", full_table),
        Case("a split column and --split", f"{BY_TABLE} --split-column patient --split 0.5/0.5", "both given",
             full_table),
        Case("a patient in two of the given splits", f"{BY_TABLE} --group-column group --split-column split",
             "more than one of the given splits",
             table("000.jpg,cat,1,train", "001.jpg,dog,1,test", header="image,label,group,split\n")),
    ),
    "Datasets": (
        Case("no such dataset", "distrib inspect nowhere", "does not exist"),
        Case("a file for the dataset", "distrib inspect experiment.yaml", "can not be read"),
        Case("a label edited in the manifest", "distrib inspect data", "damaged or edited",
             edit("data/dataset.json", '"label": [0, ', '"label": [1, ')),
        Case("a manifest of another version", "distrib inspect data", "distrib-dataset/2",
             of_version("data/dataset.json", "distrib-dataset/2")),
        Case("an empty manifest", "distrib inspect data", "does not begin", write("data/dataset.json", "")),
        Case("a web page for the manifest", TRAIN, "does not begin", write("data/dataset.json", HTML)),
        Case("a sealed manifest that contradicts itself", "distrib inspect data", "valid manifest",
             resealed("data/dataset.json", lambda document: document.update(classes=["cat"]))),
        Case("a flipped bit in a shard", "distrib inspect data", "damaged", flip("data/train-000000.tar")),
        Case("a shard that is cut off", "distrib inspect data --no-verify", "damaged", cut("data/train-000000.tar")),
        Case("a shard that is gone", "distrib inspect data", "damaged", removed("data/val-000000.tar")),
    ),
    "Shards of others": (
        Case("no such folder", "distrib adopt nowhere", "can not be read"),
        Case("no shards", "distrib adopt photos", "no .tar files"),
        Case("shards that are a dataset already", "distrib adopt data", "a dataset already"),
        Case("compressed shards", "distrib adopt theirs", "compressed", write("theirs/train.tar.gz", b"\x1f\x8b")),
        Case("a compressed shard named .tar", "distrib adopt theirs", "compressed",
             write("theirs/train.tar", b"\x1f\x8b")),
        Case("names without a split", "distrib adopt theirs --split val=*.tar", "train split", theirs()),
        Case("a --split without a pattern", "distrib adopt theirs --split train", "not of the form", theirs()),
        Case("a shard that is cut off", "distrib adopt theirs", "cut off",
             both(theirs(), cut("theirs/train.tar", 0.1))),
        Case("a web page for a shard", "distrib adopt theirs", "damaged", write("theirs/train.tar", HTML)),
        Case("samples without labels", "distrib adopt theirs", "no .cls", theirs(("jpg", encoded()))),
        Case("a pickle for a label", "distrib adopt theirs", "no .cls",
             theirs(("jpg", encoded()), ("pickle", b"\x80."))),
        Case("an unknown field for the label", "distrib adopt theirs --label-field dx", "no field 'dx'",
             theirs(("jpg", encoded()), ("json", b"{}"))),
        Case("broken images", "distrib adopt theirs", "neither JPEG nor PNG",
             theirs(("jpg", HTML.encode()), ("cls", b"0"))),
        Case("labels beyond the class names", "distrib adopt theirs --class-names names.txt", "neither a class name",
             both(theirs(("jpg", encoded()), ("cls", b"7")), write("names.txt", "cat\ndog\n"))),
        Case("class names that repeat", "distrib adopt theirs --class-names names.txt", "repeated",
             both(theirs(), write("names.txt", "cat\ncat\n"))),
    ),
    "Experiments": (
        Case("no such file", "distrib train nowhere.yaml --run new", "can not be read"),
        Case("a folder for the file", "distrib train data --run new", "Is a directory"),
        Case("an image for the file", f"distrib train {X} --run new", "not UTF-8", write(X, encoded())),
        Case("an empty file", TRAIN, "is missing", write(YAML, "")),
        Case("a list", TRAIN, "holds a list", write(YAML, "- data\n")),
        Case("tabs", TRAIN, "not valid YAML", write(YAML, "data:\n\tdataset: data\n")),
        Case("a YAML bomb", TRAIN, "aliases", write(YAML, "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n")),
        Case("deep nesting", TRAIN, "nested too deeply", write(YAML, "[" * 20_000)),
        Case("a Python object", TRAIN, "not valid YAML", write(YAML, "data: !!python/object/apply:os.system [ls]\n")),
        Case("a list as a key", TRAIN, "not valid YAML", write(YAML, "? [a]\n: b\n")),
        Case("a number as a key", TRAIN, "keys should be strings", edit(YAML, "comm:", "5:")),
        Case("a date that is none", TRAIN, "not valid YAML", edit(YAML, "small_cnn", "2026-99-99")),
        Case("a number of 5000 digits", TRAIN, "not valid YAML", edit(YAML, "0.05", "1" * 5000)),
        Case("a key that stands twice", TRAIN, "stands twice", edit(YAML, "epochs: 2", "epochs: 2, epochs: 3")),
        Case("an unknown key", TRAIN, "did you mean 'epochs'", edit(YAML, "epochs", "epoch")),
        Case("a value for a section", TRAIN, "model", edit(YAML, "{name: small_cnn}", "small_cnn")),
        Case("a learning rate of nan", TRAIN, "finite", edit(YAML, "0.05", ".nan")),
        Case("a learning rate below 0", TRAIN, "greater than 0", edit(YAML, "0.05", "-1")),
        Case("images of 100000 pixels", TRAIN, "2048", edit(YAML, "16", "100000")),
        Case("lanes that do not divide the batch", TRAIN, "must divide", edit(YAML, "lanes: 2", "lanes: 3")),
        Case("a mean of two channels", f"{TRAIN} --set data.mean=[0.5,0.5]", "mean"),
        Case("100000 threads", f"{TRAIN} --set train.threads=100000", "threads"),
        Case("a time-out of 1e300 s", f"{TRAIN} --set comm.timeout_s=1e300", "timeout_s"),
        Case("a --set without a value", f"{TRAIN} --set train.lr", "section.key=value"),
        Case("a --set of an unknown key", f"{TRAIN} --set train.learning_rate=1", "unknown key"),
        Case("a --set below a value", f"{TRAIN} --set train.lr.x=1", "not a section"),
        Case("a --set that is no YAML", f"{TRAIN} --set train.lr=[1", "not valid YAML"),
        Case("an unknown backend", f"{TRAIN} --set comm.backend=nccl", "comm.backend"),
        Case("an unknown positive class", f"{TRAIN} --set evaluate.positive_class=bird", "positive_class"),
        Case("class weights for three classes", f"{TRAIN} --set train.class_weights=[1,2,3]", "class_weights"),
        Case("no such dataset", f"{TRAIN} --set data.dataset=nowhere", "does not exist"),
        Case("a broken sample", TRAIN, "checksum", in_an_image, leaves=("new/*",)),
        Case("a dataset without the validation that early stopping needs",
             f"{TRAIN} --set train.early_stopping.patience=1 --set data.dataset=whole", "no 'val' split",
             only_train),
        Case("a loss that is not finite", f"{TRAIN} --set train.lr=1e30", "not a finite number", code=3,
             leaves=("new/*",)),
    ),
    "Models": (
        Case("an unknown model", f"{TRAIN} --set model.name=resnet5", "choose one of"),
        Case("an unknown library", f"{TRAIN} --set model.name=keras/resnet50", "is unknown"),
        Case("a library that is not installed", f"{TRAIN} --set model.name=timm/resnet50", "needs the package"),
        Case("IPEX where it is not installed", f"{TRAIN} --set train.ipex=true", "pip install"),
        Case("a function of no module", f"{TRAIN} --set model.name=nowhere:model", "No module named"),
        Case("a function that takes something else", f"{TRAIN} --set model.name=os:getcwd", "model.name"),
        Case("no such weights", f"{TRAIN} --set model.weights=nowhere.safetensors", "can not be read"),
        Case("weights that are a pickle", f"{TRAIN} --set model.weights=weights.pt", "can not be read", pickled),
        Case("an empty file of weights", f"{TRAIN} --set model.weights=weights.safetensors", "can not be read",
             write("weights.safetensors", b"")),
        Case("a folder for the weights", f"{TRAIN} --set model.weights=data", "can not be read"),
        Case("weights of another model", f"{TRAIN} --set model.weights=weights.safetensors", "not of this model",
             weights_of_another_model),
        Case("a pattern that freezes nothing", f"{TRAIN} --set model.freeze=[layer9.*]", "matches no parameter"),
        Case("everything frozen", f"{TRAIN} --set 'model.freeze=[\"*\"]'", "nothing left to train"),
    ),
    "Run folders": (
        Case("a file for the run folder", "distrib train experiment.yaml --run here.yaml", "run folder"),
        Case("a run folder inside a file", "distrib train experiment.yaml --run here.yaml/new", "run folder"),
        Case("no room for a checkpoint", f"prlimit --fsize=60000 {TRAIN}", "checkpoint", leaves=("new/*",)),
        Case("a run that was never begun", "distrib train --run nowhere", "no run to go on with"),
        Case("another learning rate than the run's", "distrib train experiment.yaml --run run --set train.lr=1",
             "train.lr"),
        Case("the run's experiment edited", GO_ON, "damaged", edit("run/experiment.json", "0.05", "0.06")),
        Case("the run's experiment is a folder", GO_ON, "can not be read", folder("run/experiment.json")),
        Case("a run of another version", GO_ON, "distrib-experiment/9",
             of_version("run/experiment.json", "distrib-experiment/9")),
        Case("another dataset than the run's", "distrib train --run run --set data.dataset=other", "not the one",
             of_other_classes),
        Case("the run's record of its dataset is damaged", GO_ON, "dataset.json", flip("run/dataset.json")),
        Case("the record of the environment is damaged", GO_ON, "environment.jsonl",
             write("run/environment.jsonl", "{\n")),
        Case("another training in the same folder", GO_ON, "another training", HeldLease),
        Case("a run to join that is not elastic", f"{GO_ON} --join", "not trained elastically"),
        Case("metrics.jsonl can not be written", GO_ON, "metrics.jsonl", folder("run/metrics.jsonl"),
             leaves=("run/environment.jsonl",)),
        Case("the folder of checkpoints is a file", GO_ON, "checkpoints",
             both(removed("run/checkpoints"), write("run/checkpoints", "x"))),
        Case("all checkpoints damaged", GO_ON, "every checkpoint", flip("run/checkpoints/*/model.safetensors")),
        Case("all checkpoints cut off", EVALUATE, "every checkpoint", cut("run/checkpoints/*/model.safetensors")),
        Case("checkpoints of another version", GO_ON, "every checkpoint",
             of_version("run/checkpoints/*/checkpoint.json", "distrib-checkpoint/9")),
        Case("a run without checkpoints", EVALUATE, "no checkpoint", removed("run/checkpoints")),
    ),
    "evaluate": (
        Case("neither a run nor a bundle", "distrib evaluate data", "neither a run nor a bundle"),
        Case("an unknown split", f"{EVALUATE} --split holdout", "unknown"),
        Case("a split that the dataset lacks", f"{EVALUATE} --split test --data whole", "no 'test' split",
             only_train),
        Case("a dataset of other classes", f"{EVALUATE} --data other", "classes", of_other_classes),
        Case("no such dataset", f"{EVALUATE} --data nowhere", "does not exist"),
        Case("a runtime for a run", f"{EVALUATE} --runtime onnx", "for bundles"),
        Case("a number of resamples below 0", f"{EVALUATE} --bootstrap -1", "bootstrap"),
        Case("the folder for predictions lies in a file", f"{EVALUATE} --predictions here.yaml/x.csv", "predictions"),
        Case("a folder for the predictions", f"{EVALUATE} --predictions data", "predictions"),
        Case("a pipe for the predictions", f"{EVALUATE} --predictions pipe", "not a regular file", fifo("pipe")),
    ),
    "export": (
        Case("no run", "distrib export data --out new", "is no run"),
        Case("the bundle's folder is not empty", "distrib export run --out data", "exists already"),
        Case("the bundle's folder lies in a file", "distrib export run --out here.yaml/new", "File exists"),
        Case("an unknown format", f"{EXPORT} --format tflite", "unknown"),
        Case("no format", f"{EXPORT} --format ,", "format"),
        Case("a tolerance of nan", f"{EXPORT} --tolerance nan", "tolerance"),
        Case("a tolerance without end", f"{EXPORT} --tolerance inf", "tolerance"),
        Case("no samples for the gate", f"{EXPORT} --samples 0", "samples"),
        Case("the dataset is gone", EXPORT, "does not exist", removed("data")),
        Case("another dataset in its place", EXPORT, "classes",
             both(of_other_classes, removed("data"), renamed("other", "data"))),
        Case("no room for the bundle", f"prlimit --fsize=30000 {EXPORT} --format torch", "large"),
    ),
    "Bundles": (
        Case("no bundle", f"distrib predict data {X}", "no bundle"),
        Case("a bundle of another version", f"{PREDICT} {X}", "distrib-bundle/2",
             of_version("bundle/bundle.json", "distrib-bundle/2")),
        Case("a flipped bit in bundle.json", f"{PREDICT} {X}", "damaged", flip("bundle/bundle.json")),
        Case("a flipped bit in the OpenVINO graph", f"{PREDICT} {X}", "digest", flip("bundle/*.xml")),
        Case("a flipped bit in the OpenVINO weights", f"{PREDICT} {X}", "digest", flip("bundle/*.bin")),
        Case("a flipped bit in the ONNX file", f"{PREDICT} {X}", "digest", flip("bundle/*.onnx")),
        Case("a flipped bit in the torch file", f"{PREDICT} {X}", "digest", flip("bundle/*.pt2")),
        Case("a file that is cut off", f"{PREDICT} {X}", "bytes", cut("bundle/*.onnx")),
        Case("a file that is gone", f"{PREDICT} {X}", "missing", removed("bundle/model.onnx")),
        Case("a class renamed and the seal corrected", f"{PREDICT} {X}", "bundle",
             resealed("bundle/bundle.json", lambda document: document.update(classes=["cat"]))),
    ),
    "predict": (
        Case("no image", PREDICT, "missing argument"),
        Case("no such image", f"{PREDICT} nowhere.jpg", "No such file"),
        Case("an empty folder", f"{PREDICT} empty", "no image", folder("empty")),
        Case("an empty file", f"{PREDICT} {X}", "is empty", write(X, b"")),
        Case("a web page named .jpg", f"{PREDICT} {X}", "not an image", write(X, HTML)),
        Case("a decompression bomb", f"{PREDICT} {X}", "million", write(X, BOMB)),
        Case("a named pipe", f"{PREDICT} {X}", "regular file", fifo(X)),
        Case("a link to itself", f"{PREDICT} {X}", "symbolic links", link(X, "x.jpg")),
        Case("a broken image among good ones", f"{PREDICT} photos", "predicted", write(X, HTML)),
        Case("a name with an escape sequence", f"{PREDICT} '\x1b[2J.jpg'", "\\x1b"),
        Case("an unknown test-time augmentation", f"{PREDICT} photos --tta rotate", "unknown"),
        Case("an unknown runtime", f"{PREDICT} photos --runtime tensorrt", "no format"),
    ),
    "update": (
        Case("no such dataset", "distrib update nowhere photos --out new", "does not exist"),
        Case("images that are there already", "distrib update data photos --out new", "the dataset has already"),
        Case("nothing that is new", "distrib update data photos --out new --on-bad skip", "no image of photos is new"),
        Case("a class that the dataset does not have", UPDATE, "--new-classes", write("more/ape/1.jpg", encoded())),
        Case("a folder that is there already", "distrib update data more --out run", "not an empty folder",
             write("more/cat/1.jpg", encoded())),
        Case("a test split that shrinks", f"{UPDATE} --test shrink", "'keep' or 'grow'"),
        Case("new images given to the test split", UPDATE, "--test grow", given_splits),
        Case("a shard of the old version that is cut off", UPDATE, "is cut off",
             both(write("more/cat/1.jpg", encoded()), cut("data/val-*.tar"))),
    ),
    "train --from": (
        Case("nothing to start from", f"{TRAIN} --from nowhere", "neither a run nor a bundle"),
        Case("a run of another model", f"{TRAIN} --from run --set model.name=resnet18", "is a small_cnn"),
        Case("two things to start from", f"{TRAIN} --from run --set model.weights=w", "both given"),
        Case("a damaged bundle", f"{TRAIN} --from bundle", "does not match its digest", flip("bundle/model.pt2")),
        Case("a run that began otherwise", f"{GO_ON} --from bundle", "was begun without --from"),
        Case("a mixture of one version", f"{TRAIN} --set data.new_ratio=0.5", "nothing to mix"),
        Case("a mixture of new images alone", f"{TRAIN} --set data.new_ratio=1", "less than 1"),
    ),
    "tune": (
        Case("no such file", "distrib tune none.yaml", "can not be read"),
        Case("an experiment, not a study", "distrib tune experiment.yaml", "give it to `distrib train`"),
        Case("no such experiment", TUNE, "can not be read", write("study.yaml", "experiment: none.yaml\nkeys: {seed: "
                                                                  "{choices: [1]}}")),
        Case("no keys", TUNE, "'keys' is missing", write("study.yaml", "experiment: experiment.yaml\n")),
        Case("an unknown key", TUNE, "did you mean 'lr'", study("train.lrr: {low: 0.1, high: 1.0}")),
        Case("a range beyond a key's bounds", TUNE, "train.lr = 0", study("train.lr: {low: 0.0, high: 1.0}")),
        Case("low above high", TUNE, "must be less than high", study("train.lr: {low: 1.0, high: 0.1}")),
        Case("a logarithm of zero", TUNE, "above 0", study("train.weight_decay: {low: 0.0, high: 0.1, log: true}")),
        Case("a range of what is no number", TUNE, "takes no numbers", study("data.augment.hflip: {low: 0, high: 1}")),
        Case("values that do not go together", TUNE, "must divide", study(
            "train.lanes: {choices: [1, 3]}, train.global_batch: {choices: [8, 9]}")),
        Case("a condition on what does not vary", TUNE, "does not vary", study(
            "train.momentum: {low: 0.5, high: 0.9, when: {train.optimizer: sgd}}")),
        Case("conditions in a circle", TUNE, "leads back to itself", study(
            "seed: {choices: [1], when: {train.lr: 1}}, train.lr: {choices: [1], when: {seed: 1}}")),
        Case("to vary how trials are judged", TUNE, "judged in the same way", study(
            "evaluate.metric: {choices: [loss, auroc]}")),
        Case("data without a validation split", f"{TUNE} --set data.dataset=whole", "no 'val' split", both(
            only_train, study("seed: {choices: [1, 2]}"))),
        Case("a storage that is no URL", TUNE, "neither journal nor",
             study("seed: {choices: [1, 2]}", "storage: here")),
        Case("a database that is not there", TUNE, "does not work", study(
            "seed: {choices: [1, 2]}", "storage: sqlite:////no/such/folder/trials.db")),
        Case("a database without its driver", TUNE, "is not installed", study(
            "seed: {choices: [1, 2]}", "storage: mysql://me:secret@host/trials")),
        Case("to show a study that was not begun", f"{TUNE} --show", "is no study", study("seed: {choices: [1, 2]}")),
    ),
    "promote": (
        Case("nothing to do", "distrib promote --registry new", "one of CANDIDATE"),
        Case("no registry", "distrib promote bundle --data data", "--registry is missing"),
        Case("no dataset", "distrib promote bundle --registry new", "--data is missing"),
        Case("a run, not a bundle", "distrib promote run --registry new --data data", "is no bundle"),
        Case("a folder that is no registry", "distrib promote bundle --registry photos --data data", "no registry"),
        Case("a split that was trained on", f"{PROMOTE} --split train", "no held-out split"),
        Case("a margin below 0", f"{PROMOTE} --margin -0.1", "0 or more"),
        Case("a margin of nan", f"{PROMOTE} --margin nan", "0 or more"),
        Case("force without a reason", f"{PROMOTE} --force", "without --reason"),
        Case("an unknown metric", f"{PROMOTE} --metric beauty", "choose one of"),
        Case("a test of images that were trained on", "distrib promote bundle --registry new --data other",
             "trained on, such as", split_otherwise),
        Case("a model of an unknown dataset", "distrib promote bundle --registry new --data other", "--trained-on",
             both(split_otherwise, removed("data"))),
        Case("nothing to go back to", "distrib promote --registry new --rollback", "is no registry"),
    ),
    "ensemble": (
        Case("one run alone", "distrib ensemble run --out new", "alone is no ensemble"),
        Case("no run", "distrib ensemble run data --out new", "is no run"),
        Case("the same run twice", ENSEMBLE, "the same weights"),
        Case("a choice on the test", f"{ENSEMBLE} --split test", "never chosen on the test split"),
        Case("a choice on what was trained on", f"{ENSEMBLE} --split train", "no split to choose on"),
        Case("an unknown way to combine", f"{ENSEMBLE} --combine median", "--combine 'median' is unknown"),
        Case("an unknown way to select", f"{ENSEMBLE} --select best", "--select 'best' is unknown"),
        Case("unknown views", f"{ENSEMBLE} --tta crops", "--tta 'crops' is unknown"),
        Case("an unknown calibration", f"{ENSEMBLE} --calibrate isotonic", "--calibrate 'isotonic' is unknown"),
        Case("an unknown metric", f"{ENSEMBLE} --metric beauty", "--metric 'beauty' is unknown"),
        Case("the bundle's folder is not empty", "distrib ensemble run run --out data", "exists already"),
        Case("keys for runs that are trained", f"{ENSEMBLE} --set seed=1", "--set is for --folds"),
        Case("one fold", f"{FOLDS} --folds 1", "--folds 1 is below 2"),
        Case("more folds than groups", f"{FOLDS} --folds 60", "too few groups"),
        Case("folds that leave nothing to choose on", f"{FOLDS} --folds 2 --select greedy", "no member was trained on"),
        Case("runs and folds", "distrib ensemble run run --folds 3 --out new", "and 2 arguments"),
        Case("under a launcher", ENSEMBLE, "was started as 2 ranks",
             environment={"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}),
        Case("a run that does not say which fold", f"{TRAIN} --set data.folds=3", "which to validate on"),
        Case("a fold that there is not", f"{TRAIN} --set data.folds=3 --set data.fold=3", "count from 0"),
    ),
    "serve": (
        Case("no bundle", "distrib serve", "missing argument"),
        Case("a run, not a bundle", "distrib serve run", "is no bundle"),
        Case("a damaged bundle", "distrib serve bundle", "digest", flip("bundle/*.onnx")),
        Case("a format that is not in the bundle", "distrib serve bundle --port 0 --runtime onnx-int8", "no format"),
        Case("a port that is taken", "distrib serve bundle --port 29176", "in use", taken(29176)),
        Case("a port that is none", "distrib serve bundle --port 123456", "--port"),
        Case("a host that is not there", "distrib serve bundle --host nowhere.invalid", "nowhere.invalid"),
        Case("an address of another machine", "distrib serve bundle --host 192.0.2.1", "assign"),
        Case("no image fits", "distrib serve bundle --max-mb 0", "--max-mb"),
        Case("images of more pixels than can be read", "distrib serve bundle --max-pixels 500", "--max-pixels"),
        Case("a rate below 0", "distrib serve bundle --rate=-1", "--rate"),
        Case("a rate of nan", "distrib serve bundle --rate nan", "--rate"),
        Case("no queue", "distrib serve bundle --queue 0", "--queue"),
    ),
    "report": (
        Case("no run", "distrib report", "missing argument"),
        Case("what is neither run nor bundle", "distrib report photos", "neither a run nor a bundle"),
        Case("a split that was trained on", "distrib report run --split train", "no held-out split"),
        Case("a run named twice", "distrib report run ./run", "named twice"),
        Case("too many pictures", "distrib report run --errors 25", "between 0 and 24"),
        Case("resamples below 0", "distrib report run --bootstrap -1", "between 0 and"),
        Case("an unknown field", "distrib report run --subgroup age", "a field 'age'"),
        Case("bounds that fall", "distrib report run --subgroup age=60,40", "do not rise"),
        Case("bounds of a field of words", "distrib report run --subgroup path=1", "no number"),
        Case("no such dataset", "distrib report run --data nowhere", "does not exist"),
        Case("a damaged sample", "distrib report run", "checksum", lambda here: in_an_image(here, "val")),
        Case("metrics that are no records", "distrib report run", "no JSON object", write("run/metrics.jsonl", "x\n")),
        Case("a file where the folder should be", "distrib report run --out experiment.yaml", "could not be written"),
        Case("a folder of other things for the report", "distrib report run --out photos", "holds no report"),
        Case("another's file where the page should be", "distrib report run --out mine.html", "no report wrote it",
             write("mine.html", HTML)),
        Case("a report for two ranks", "distrib report run", "one process", environment={
            "RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29176"}),
    ),
    "launch": (
        Case("no arguments", "launch", "missing command"),
        Case("no such cluster file", "launch run nowhere.yaml -- true", "can not be read"),
        Case("an experiment, not a cluster file", "launch run experiment.yaml -- true", "give it to `distrib train`"),
        Case("a folder for the cluster file", "launch run data -- true", "Is a directory"),
        Case("no -- before the command", "launch run here.yaml distrib train experiment.yaml", "no `--`"),
        Case("no command", "launch run here.yaml --", "missing argument"),
        Case("a command that is not there", f"{LAUNCH} distirb train", "neither on PATH"),
        Case("a command that is a folder", f"{LAUNCH} ./data", "is a folder"),
        Case("a command that is not executable", f"{LAUNCH} ./experiment.yaml", "not executable"),
        Case("no ranks", "launch run here.yaml --ranks 0 -- true", "--ranks"),
        Case("a billion ranks", "launch run here.yaml --ranks 1000000000 -- true", "more than"),
        Case("several nodes", "launch run here.yaml --nodes 2 -- true", "one node"),
        Case("an unknown key", f"{LAUNCH} true", "did you mean 'ranks_per_node'", edit("here.yaml", "ranks_", "rank_")),
        Case("an unknown launcher", f"{LAUNCH} true", "no such launcher", write("here.yaml", "launcher: pbs\n")),
        Case("a rank's own variable", f"{LAUNCH} true", "launcher itself sets", write("here.yaml", "env: {RANK: 1}\n")),
        Case("a truth value for a variable", f"{LAUNCH} true", "in quotes", write("here.yaml", "env: {A: yes}\n")),
        Case("a name that is no variable's", f"{LAUNCH} true", "environment variable",
             write("here.yaml", "env: {a-b: 1}\n")),
        Case("an allocator that is not installed", "launch run here.yaml --set allocator=jemalloc -- true", "jemalloc"),
        Case("a file for the folder of logs", "launch run here.yaml --ranks 2 --logs here.yaml -- true", "File exists"),
        Case("bad input of the command itself", f"{LAUNCH} distrib inspect nowhere", "does not exist"),
    ),
    "Worlds": (
        Case("more ranks than lanes", f"launch run here.yaml --ranks 3 --logs logs -- {TRAIN}", "3 ranks",
             leaves=("logs/*",)),
        Case("a broken sample, on two ranks", f"{BOTH} {TRAIN}", "checksum", in_an_image, leaves=("logs/*", "new/*")),
        Case("all checkpoints damaged, on two ranks", f"{BOTH} {GO_ON}", "every checkpoint",
             flip("run/checkpoints/*/model.safetensors"), leaves=("logs/*",)),
        Case("a damaged bundle, on two ranks", f"{BOTH} distrib evaluate bundle", "digest", flip("bundle/*.onnx"),
             leaves=("logs/*",)),
        Case("a rank without a world size", TRAIN, "WORLD_SIZE", environment={"RANK": "1"}),
        Case("a world size without a rank", TRAIN, "RANK", environment={"WORLD_SIZE": "2"}),
        Case("a rank beyond the world", TRAIN, "no rank of", environment={"RANK": "2", "WORLD_SIZE": "2"}),
        Case("a rank that is no number", TRAIN, "not a number", environment={"RANK": "first", "WORLD_SIZE": "2"}),
        Case("nowhere to meet", TRAIN, "MASTER_ADDR", environment={"RANK": "0", "WORLD_SIZE": "2"}),
        Case("a port that is none", TRAIN, "MASTER_PORT", environment={
            "RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "123456"}),
        Case("a port that is taken", TRAIN, "29177", taken(29177), environment={
            "RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29177"}),
        Case("a host that is not there", f"{TRAIN} --set comm.timeout_s=2", "nowhere.invalid", environment={
            "RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "nowhere.invalid", "MASTER_PORT": "29178"}),
        Case("a rank that never comes", f"{TRAIN} --set comm.timeout_s=2", "never came", environment={
            "RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29179"}),
        Case("a network interface that is not there", TRAIN, "nope0", environment={"GLOO_SOCKET_IFNAME": "nope0"}),
    ),
    "Output": (
        Case("no room for the answer", "sh -c 'distrib inspect data --json > /dev/full'", "No space left"),
        Case("an encoding that can not hold a name", f"{PREDICT} bäd.jpg nöwhere.jpg", "1 of 2 images",
             write("bäd.jpg", encoded()), environment={"PYTHONIOENCODING": "ascii"}),
    ),
}


@dataclass(frozen=True)
class Answer:
    """What a command did with the bad input."""

    code: int
    stdout: str
    stderr: str
    changed: tuple[str, ...]
    """Paths that appeared, went or changed."""
    folder: Path

    @property
    def line(self) -> str:
        """The answer, without what differs between machines."""
        text = self.stderr.strip().rpartition("\n")[2]
        text = text.replace(socket.gethostname(), "HOST").replace(str(Path(sys.executable).parent), "BIN")
        text = text.replace(f"{self.folder}/", "")
        text = re.sub(r"\.HOST\.\d+\.", ".HOST.PID.", text)
        # Sizes of exported files depend on the exporters' versions.
        return re.sub(r"has \d+ bytes, not \d+", "has N bytes, not M", text)


def make_kit(kit: Path) -> Path:
    """The good things: photos, a dataset, an experiment, a run of it, a bundle of that, a cluster file."""
    for number in range(60):
        path = kit / "photos" / ("cat", "dog")[number % 2] / f"{number:03d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(number=number))
    write("experiment.yaml", EXPERIMENT)(kit)
    write("here.yaml", CLUSTER)(kit)
    for command in ("distrib prepare photos --out data --split 0.6/0.2/0.2 --shard-samples 20",
                    "distrib train experiment.yaml --run run", "distrib export run --out bundle"):
        done = subprocess.run(shlex.split(command), cwd=kit, env=environment(), capture_output=True, text=True,
                              timeout=TIMEOUT_S)
        assert done.returncode == 0, done.stderr
    return kit


def contents(root: Path) -> dict[str, str]:
    """Every path below a folder, with a digest of what it is."""
    found = {}
    for path in root.rglob("*"):
        status = path.lstat()
        what = path.read_bytes() if path.is_file() else os.readlink(path) if path.is_symlink() else ""
        raw = what if isinstance(what, bytes) else what.encode()
        found[str(path.relative_to(root))] = f"{status.st_mode:o} {hashlib.sha256(raw).hexdigest()}"
    return found


def ask(case: Case, kit: Path, here: Path) -> Answer:
    """Give a command bad input, in a folder of its own."""
    shutil.copytree(kit, here, symlinks=True)
    held = case.given(here)
    before = contents(here)
    temporary = here.with_name(f"{here.name}.tmp")
    temporary.mkdir()
    try:
        process = subprocess.Popen(shlex.split(case.command), cwd=here, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                   stdin=subprocess.DEVNULL, text=True, errors="surrogateescape",
                                   start_new_session=True,
                                   env={**environment(), "TMPDIR": str(temporary), **case.environment})
        try:
            stdout, stderr = process.communicate(timeout=TIMEOUT_S)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.communicate()
    finally:
        if held is not None:
            held.close()
    after = contents(here)
    changed = {path for path in before.keys() | after.keys() if before.get(path) != after.get(path)
               and not path.startswith("run/lease")}  # who trained last stands there
    # torch keeps what it compiled for the next time.
    changed |= {f"TMPDIR/{path.name}" for path in temporary.iterdir() if not path.name.startswith("torchinductor_")}
    shutil.rmtree(here)
    shutil.rmtree(temporary)
    return Answer(process.returncode, stdout, stderr, tuple(sorted(changed)), here)


def problems(case: Case, answer: Answer) -> list[str]:
    """What is wrong with an answer; empty if it is as it should be."""
    lines = answer.stderr.splitlines()
    checks = {
        f"exit code {answer.code}, not {case.code}": answer.code == case.code,
        "a traceback": "Traceback" not in answer.stderr + answer.stdout,
        "not one line of error at the end": [line.startswith("error: ") for line in lines].count(True) == 1
        and lines[-1].startswith("error: "),
        "control characters on the terminal": all(c.isprintable() or c == "\n" for c in answer.stderr + answer.stdout),
        f"no word of {case.says!r}": case.says.lower() in answer.line.lower(),
    }
    found = [problem for problem, fine in checks.items() if not fine]
    return found + [f"{path} appeared, changed or went away" for path in answer.changed
                    if not any(fnmatch(path, pattern) or pattern.startswith(f"{path}/") for pattern in case.leaves)]


def key(group: str, case: Case) -> str:
    return f"{group}: {case.what}"


def rows() -> dict[str, Case]:
    return {key(group, case): case for group, cases in CASES.items() for case in cases}


def page(answers: dict[str, str]) -> str:
    """docs/bad-input.md."""
    lines = ["# Bad input, and what is answered", "",
             f"{len(answers)} kinds of bad input, each tried with the real command. Every one ends with exit code 2 (3 "
             "for a loss that is not finite) and this one line on stderr, after whatever was listed or noted before; "
             "no file is changed, lost or left behind. BIN, HOST, PID, N and M stand for what differs by machine. "
             "Written and checked by `tests/integration/test_bad_input.py`."]
    for group, cases in CASES.items():
        lines += ["", f"## {group}", "", "| what | command | answer |", "|---|---|---|"]
        lines += [f"| {case.what} | {_code(_typed(case))} | {_code(answers[key(group, case)])} |" for case in cases]
    return "\n".join([*lines, ""])


def _typed(case: Case) -> str:
    variables = [f"{name}={value}" for name, value in case.environment.items()]
    return " ".join([*variables, case.command])


def _code(text: str) -> str:
    """Text as it is, in a cell of a table."""
    text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text).replace("|", "\\|")
    fence = "``" if "`" in text else "`"
    return f"{fence} {text} {fence}" if "`" in text else f"`{text}`"


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_kit(tmp_path_factory.mktemp("kit"))


@pytest.fixture(scope="module")
def answers(request: pytest.FixtureRequest, kit: Path,
            tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Future[Answer]]]:
    """The answers to all cases that are to be tested, asked for on every core at once."""
    root = tmp_path_factory.mktemp("cases")
    wanted = [str(item.callspec.params["name"]) for item in request.session.items
              if isinstance(item, pytest.Function) and item.originalname == test_bad_input_is_answered.__name__]
    with ThreadPoolExecutor(len(os.sched_getaffinity(0)), thread_name_prefix="case") as pool:
        yield {name: pool.submit(ask, rows()[name], kit, root / str(number)) for number, name in enumerate(wanted)}
        pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize("name", rows())
def test_bad_input_is_answered(name: str, answers: dict[str, Future[Answer]]) -> None:
    case, answer = rows()[name], answers[name].result()
    assert not problems(case, answer), answer.stderr
    row = f"| {_code(_typed(case))} | {_code(answer.line)} |"
    assert row in PAGE.read_text(), f"run python {Path(__file__).relative_to(REPOSITORY)}"


def test_the_page_has_these_cases_and_no_others() -> None:
    listed = re.findall(r"^\| (.*?) \| (`.*?`+) \|", PAGE.read_text(), re.MULTILINE)
    assert listed == [(case.what, _code(_typed(case))) for case in rows().values()]


@pytest.mark.parametrize("words", ["distrib", "launch", *(f"distrib {verb}" for verb in (
    "prepare", "adopt", "inspect", "train", "evaluate", "export", "predict", "update", "promote", "bench", "ensemble",
    "report", "serve", "tune")),
    "launch run", "launch plan"])
def test_help_is_for_the_asking(words: str, tmp_path: Path) -> None:
    for option in ("--help", "-h"):
        done = subprocess.run([*words.split(), option], cwd=tmp_path, env=environment(), capture_output=True, text=True,
                              timeout=TIMEOUT_S)
        assert (done.returncode, done.stderr) == (0, "")
        assert "Usage:" in done.stdout
    bare = subprocess.run(words.split(), cwd=tmp_path, env=environment(), capture_output=True, text=True,
                          timeout=TIMEOUT_S)
    assert bare.returncode == 2
    assert not bare.stdout
    assert "Traceback" not in bare.stderr
    assert bare.stderr.startswith(("error: ", "Usage: "))


def test_a_reader_who_has_enough_ends_the_command_quietly(kit: Path) -> None:
    process = subprocess.Popen(["distrib", "predict", "bundle", "photos"], cwd=kit, env=environment(),
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    with process.stderr:
        assert process.stderr.read() == ""
    assert process.wait(TIMEOUT_S) == 128 + signal.SIGPIPE


def main() -> int:
    """Write the page; the exit code says whether all answers are as they should be."""
    bad = 0
    lines = {}
    with tempfile.TemporaryDirectory() as root, ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        kit = Path(root) / "kit"
        kit.mkdir()
        make_kit(kit)
        asked = {name: pool.submit(ask, case, kit, Path(root) / str(number))
                 for number, (name, case) in enumerate(rows().items())}
        for name, future in asked.items():
            answer = future.result()
            lines[name] = answer.line
            for problem in problems(rows()[name], answer):
                bad += 1
                print(f"{name}: {problem}\n    {answer.line}")
    PAGE.write_text(page(lines))
    print(f"{len(lines)} answers in {PAGE}, {bad} problems")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
