"""The digits demo's dataset, for the benchmarks that train on it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
EXPERIMENT = ROOT / "examples/digits/digits.yaml"


def make_digits(folder: Path) -> Path:
    """Draw and prepare it below ``folder``; the dataset's own folder."""
    source, dataset = folder / "digits", folder / "dataset"
    subprocess.run([sys.executable, ROOT / "examples/digits/make_digits.py", source], check=True,
                   stdout=subprocess.DEVNULL)
    subprocess.run([sys.executable, "-m", "distrib", "prepare", source / "images", "--labels", source / "labels.csv",
                    "--image-column", "image", "--label-column", "label", "--out", dataset], check=True,
                   capture_output=True)
    return dataset
