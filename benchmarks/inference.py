"""What int8 brings and costs: images/s of ResNet-50 at 224 px, and labels of the digits' test split.

    python benchmarks/inference.py speed     int8 and bf16 beside fp32 of the same runtime, by turns (`distrib bench`)
    python benchmarks/inference.py labels    the share of test images with the label of fp32

The ResNet-50 is hardly trained: what its images are does not change how long they take, and whether its labels agree
says nothing. The digits' model is trained as the demo's.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from digits import EXPERIMENT, ROOT, make_digits
from timing import note, show

sys.path.insert(0, str(ROOT))

from tests.conftest import write_dataset

PAIRS = {"openvino-int8": "openvino", "openvino-bf16": "openvino", "onnx-int8": "onnx"}
FORMATS = "openvino,onnx,openvino-int8,openvino-bf16,onnx-int8"
BRIEFLY = """\
data: {{dataset: {dataset}, image_size: {side}}}
model: {{name: {model}}}
train: {{epochs: 1, global_batch: 8, lanes: 1, lr: 0.01}}
evaluate: {{bootstrap: 0}}
"""


def distrib(*words: str | Path) -> Any:
    """What a verb answers with --json."""
    note(f"distrib {' '.join(str(word) for word in words[:2])}")
    done = subprocess.run([sys.executable, "-m", "distrib", *map(str, words), "--json"], stdout=subprocess.PIPE,
                          text=True, check=True, cwd=ROOT)
    return json.loads(done.stdout)


def speed(folder: Path, seconds: float, model: str, side: int) -> None:
    dataset = write_dataset(folder / "dataset", train=64, val=64, side=side, kind="jpg")
    experiment = folder / "experiment.yaml"
    experiment.write_text(BRIEFLY.format(dataset=json.dumps(str(dataset)), model=model, side=side))
    distrib("train", experiment, "--run", folder / "run")
    distrib("export", folder / "run", "--out", folder / "bundle", "--format", FORMATS, "--max-drop", "1")
    report = distrib("bench", folder / "bundle", "--batch", "1,32", "--seconds", str(seconds))
    rate = {(row["format"], row["batch"]): row["images_per_s"] for row in report["rows"]}
    show(f"{model} at {report['image_size']} px, {report['threads']} threads")
    for row in report["rows"]:
        base = PAIRS.get(row["format"])
        beside = f", {row['images_per_s'] / rate[base, row['batch']]:.2f} x {base}" if base else ""
        show(f"{row['format']:14} batch {row['batch']:2}: {row['images_per_s']:6.1f} images/s, "
             f"{row['p50_ms'] / row['batch']:5.1f} ms an image{beside}")


def labels(folder: Path) -> None:
    dataset, run, bundle = make_digits(folder), folder / "run", folder / "bundle"
    note("distrib train, two ranks")
    subprocess.run([sys.executable, "-m", "launch", "run", str(ROOT / "cluster_configs/dev.yaml"), "--", sys.executable,
                    "-m", "distrib", "train", str(EXPERIMENT), "--set", f"data.dataset={json.dumps(str(dataset))}",
                    "--run", str(run)], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    distrib("export", run, "--out", bundle, "--format", FORMATS)
    found: dict[str, dict[str, str]] = {}
    for name in FORMATS.split(","):
        table = folder / f"{name}.csv"
        report = distrib("evaluate", bundle, "--split", "test", "--runtime", name, "--bootstrap", "0", "--predictions",
                         table)
        with table.open(newline="") as file:
            found[name] = {row["key"]: row["label"] for row in csv.DictReader(file)}
        base = PAIRS.get(name)
        equal = sum(found[name][key] == label for key, label in found[base].items()) if base else 0
        beside = f", labels of {base}: {equal} of {len(found[name])} ({equal / len(found[name]):.4f})" if base else ""
        show(f"{name:14} accuracy {report['accuracy']:.4f}{beside}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("speed", "labels"))
    parser.add_argument("--seconds", type=float, default=16.0, help="of each format at each batch size")
    parser.add_argument("--model", default="resnet50", help="of the speed")
    parser.add_argument("--image-size", type=int, default=224, help="of the speed")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if options.part == "speed":
            speed(Path(folder), options.seconds, options.model, options.image_size)
        else:
            labels(Path(folder))


if __name__ == "__main__":
    main()
