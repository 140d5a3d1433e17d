"""Images/s of one core's data path: ours, beside webdataset with Pillow, and beside the bare decoder.

    python benchmarks/data.py [--images 400] [--rounds 6] [--resize 256]

All read the same shards of generated 600x450 JPEG lesions and give 224-pixel crops, in turns, on one
core, with the files in the page cache. "bare decoder": libjpeg-turbo decodes bytes in memory at full size
and nothing else; ours may be faster than that, as it decodes no larger than the crop needs.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import simplejpeg
import webdataset
from PIL import Image
from timing import note, one_core, paired_rounds, ratio, show

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "examples" / "melanoma"))

from lesions import write_ham10000  # noqa: E402

from distrib.data.keyed import uniforms  # noqa: E402
from distrib.data.manifest import load_manifest  # noqa: E402
from distrib.data.order import ShuffledOrder  # noqa: E402
from distrib.data.prepare import run_prepare  # noqa: E402
from distrib.data.shards import ShardReader  # noqa: E402
from distrib.data.stream import Stream  # noqa: E402
from distrib.data.transform import TrainTransform  # noqa: E402

SIDE, BATCH = 224, 32
TRANSFORM = TrainTransform(SIDE, 0, 0.35, 4 / 3, True, True, 20.0, 0.1, 0.1)
STILL = TrainTransform(SIDE, 0, 0.35, 4 / 3, True, True, 0.0, 0.0, 0.0)


def stream_reader(folder: Path, transform: TrainTransform) -> Callable[[], None]:
    """One epoch of our stream: one lane, one decoding thread."""
    samples = load_manifest(folder).samples("train")

    def read() -> None:
        order = ShuffledOrder(samples.shard_sizes, lanes=1, lane_batch=BATCH, seed=0, shuffle_shards=8)
        steps = len(samples) // BATCH
        with ShardReader(folder, samples) as reader, Stream(
            reader, samples, order, transform, side=SIDE, lanes=[0], first_step=0, last_step=steps, threads=1,
            prefetch_steps=2,
        ) as stream:
            for _ in range(steps):
                stream.take()

    return read


def pillow_reader(folder: Path, count: int) -> Callable[[], None]:
    """webdataset with Pillow: the usual random-resized crop and flip, in batches."""
    urls = sorted(str(path) for path in folder.glob("train-*.tar"))

    def crop(number: int, image: Image.Image) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
        u = uniforms(number, 5)
        width, height = image.size
        area = width * height * (0.35 + 0.65 * u[0])
        aspect = (3 / 4) ** (1 - 2 * u[1])
        w, h = min(np.sqrt(area * aspect), width), min(np.sqrt(area / aspect), height)
        left, top = (width - w) * u[2], (height - h) * u[3]
        image = image.resize((SIDE, SIDE), Image.Resampling.BILINEAR, box=(left, top, left + w, top + h))
        return np.asarray(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if u[4] < 0.5 else image)

    def read() -> None:
        shards = webdataset.WebDataset(urls, shardshuffle=False, empty_check=False)
        dataset = shards.decode("pil").to_tuple("jpg", "cls")
        batch = []
        for number, (image, _) in enumerate(dataset):
            batch.append(crop(number, image))
            if len(batch) == BATCH:
                np.stack(batch)
                batch.clear()
            if number + 1 == count // BATCH * BATCH:
                break

    return read


def decoder(folder: Path) -> Callable[[], None]:
    """libjpeg-turbo alone, on bytes in memory."""
    samples = load_manifest(folder).samples("train")
    with ShardReader(folder, samples) as reader:
        encoded = [reader.read(sample) for sample in range(len(samples) // BATCH * BATCH)]

    def read() -> None:
        for content in encoded:
            simplejpeg.decode_jpeg(content, colorspace="RGB")

    return read


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--resize", type=int, default=256)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        note("writing the images")
        write_ham10000(folder / "ham", options.images, jobs=2)
        for name, resize in (("full", None), ("small", options.resize)):
            run_prepare(folder / "ham", folder / name, labels=folder / "ham" / "HAM10000_metadata.csv",
                        image_column="image_id", label_column="dx", split="1/0/0", resize=resize)
        core = one_core()
        works = {
            "bare decoder": decoder(folder / "full"),
            "webdataset + Pillow": pillow_reader(folder / "full", options.images),
            "our stream": stream_reader(folder / "full", STILL),
            "our stream, also rotating and toning": stream_reader(folder / "full", TRANSFORM),
            f"our stream, prepared with --resize {options.resize}": stream_reader(folder / "small", STILL),
        }
        taken = paired_rounds(works, options.rounds)
        read = options.images // BATCH * BATCH
        show(f"600x450 JPEG to {SIDE} px, core {core}; medians of {options.rounds} rounds")
        show(f"{'':44}{'images/s':>10}{'x webdataset':>14}{'x decoder':>11}")
        for name, elapsed in taken.items():
            rate = read / sorted(elapsed)[len(elapsed) // 2]
            show(f"{name:44}{rate:10.0f}{ratio(taken['webdataset + Pillow'], elapsed)[0]:14.2f}"
                 f"{ratio(taken['bare decoder'], elapsed)[0]:11.2f}")


if __name__ == "__main__":
    main()
