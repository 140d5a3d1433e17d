"""What several tests share: a small generated dataset, and processes that are always ended."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import tarfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import cv2
import hypothesis
import numpy as np
import pytest

from distrib.data.manifest import FILE_NAME, Manifest, Shard, ShardIndex, Split
from distrib.durable import sha256_file
from launch.processes import remove_shared_memory

MakeDataset = Callable[..., Path]
REPOSITORY = Path(__file__).resolve().parent.parent
# A script that runs in the background, or under nohup, has them ignored, and so would all that tests start and signal.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
# How long an example takes says how busy the machine is.
hypothesis.settings.register_profile("distrib", deadline=None)
hypothesis.settings.load_profile("distrib")


def draw_image(label: int, rng: np.random.Generator, side: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """A bright bar whose angle tells the class, on noise."""
    image = rng.integers(0, 90, (side, side, 3), dtype=np.uint8)
    angle = label * np.pi / 3 + rng.normal(0, 0.08)
    middle = side / 2 + rng.normal(0, side / 16, 2)
    along = 0.35 * side * np.array([np.cos(angle), np.sin(angle)])
    start, end = (tuple(np.rint(middle + sign * along).astype(int).tolist()) for sign in (-1, 1))
    colour = tuple(rng.integers(150, 255, 3).tolist())
    cv2.line(image, start, end, colour, max(2, side // 10))
    return image


def write_dataset(folder: Path, *, train: int = 90, val: int = 30, test: int = 0, classes: int = 3, side: int = 32,
                  shard_samples: int = 20, seed: int = 0, kind: str = "png") -> Path:
    """A dataset of bars at angles, written without `distrib prepare` so that it does not depend on it."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    shards: list[Shard] = []
    counts: Sequence[tuple[Split, int]] = (("train", train), ("val", val), ("test", test))
    for split, count in counts:
        for number, begin in enumerate(range(0, count, shard_samples)):
            columns: dict[str, list[object]] = {name: [] for name in ShardIndex.model_fields}
            path = folder / f"{split}-{number:06d}.tar"
            with tarfile.open(path, "w") as tar:
                for sample in range(begin, min(begin + shard_samples, count)):
                    label = sample % classes
                    encoded = cv2.imencode(f".{kind}", draw_image(label, rng, side))[1].tobytes()
                    key = f"{split}{sample:05d}"
                    for extension, content in ((kind, encoded), ("cls", str(label).encode())):
                        member = tarfile.TarInfo(f"{key}.{extension}")
                        member.size = len(content)
                        tar.addfile(member, io.BytesIO(content))
                    row = {"key": key, "kind": kind, "length": len(encoded), "crc32": zlib.crc32(encoded),
                           "label": label, "group": f"g{sample // 2}", "offset": 0}
                    for name, value in row.items():
                        columns[name].append(value)
            with tarfile.open(path) as tar:
                columns["offset"] = [m.offset_data for m in tar if not m.name.endswith(".cls")]
            index = ShardIndex.model_validate(columns)
            shards.append(Shard(name=path.name, split=split, num_samples=len(index.key), bytes=path.stat().st_size,
                                sha256=sha256_file(path), index=index))
    manifest = Manifest(classes=tuple(f"angle{i}" for i in range(classes)), shards=tuple(shards), preparation={})
    (folder / FILE_NAME).write_bytes(manifest.to_bytes())
    return folder


@pytest.fixture(autouse=True)
def _same_environment() -> Iterator[None]:
    """What a test leaves in the environment, such as gloo's interface, is not for the next."""
    before = dict(os.environ)
    yield
    for name in os.environ.keys() - before.keys() - {"PYTEST_CURRENT_TEST"}:
        del os.environ[name]
    os.environ.update({name: value for name, value in before.items() if name != "PYTEST_CURRENT_TEST"})


@pytest.fixture
def make_dataset(tmp_path: Path) -> MakeDataset:
    """Writes a dataset of generated images; takes the keyword arguments of `write_dataset`."""
    made = 0

    def make(**arguments: int | str) -> Path:
        nonlocal made
        made += 1
        return write_dataset(tmp_path / f"dataset{made}", **arguments)  # type: ignore[arg-type]

    return make


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of 90 training and 30 validation images in 3 classes. Not to be changed."""
    return write_dataset(tmp_path_factory.mktemp("shared") / "dataset", test=30)


EXPERIMENT = """\
data:
  dataset: {dataset}
  image_size: 16
  augment: {{rotate_degrees: 10, brightness: 0.1, hflip: false}}
model: {{name: small_cnn, dropout: 0.2}}
train: {{epochs: 2, global_batch: 16, lanes: 8, lr: 0.05, precision: fp32}}
evaluate: {{bootstrap: 20}}
seed: 3
"""


@pytest.fixture
def experiment(dataset: Path, tmp_path: Path) -> Path:
    """An experiment file on `dataset`: small, with batch norm, dropout and augmentation; 8 lanes of 2 images."""
    path = tmp_path / "experiment.yaml"
    path.write_text(EXPERIMENT.format(dataset=dataset))
    return path


Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts processes, each in a session of its own; whatever is left at the test's end is killed."""
    started: list[subprocess.Popen[str]] = []

    def begin(*argv: str | Path, **environment: str) -> subprocess.Popen[str]:
        env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY), **environment}
        process = subprocess.Popen([str(word) for word in argv], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                   text=True, env=env, start_new_session=True)
        started.append(process)
        return process

    yield begin
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        remove_shared_memory(process.pid)


PYTHON = sys.executable
