"""Generates skin lesions in the folder layouts of HAM10000 and ISIC 2020, as many as asked.

    python examples/melanoma/lesions.py ham10000 OUT --images 10015
    python examples/melanoma/lesions.py isic2020 OUT --images 33126

The pictures follow the ABCD rule (see lesion_traits); folders, files, columns, picture sizes, classes and
their imbalance, and pictures a lesion or a patient are those of the real data sets. Everything depends on the seed
alone. The pictures are for trying the system at scale; what a model learns from them says nothing of real skin.
"""

from __future__ import annotations

import argparse
import csv
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import simplejpeg
from lesion_drawing import paint
from lesion_traits import draw_lesion_traits, draw_skin, draw_view, random_state
from numpy.typing import NDArray

cv2.setNumThreads(0)  # one picture is one thread's work; --jobs draws several at a time

# HAM10000 (Tschandl, Rosendahl, Kittler, 2018): diagnosis -> (images, lesions).
HAM_COUNTS = {"bkl": (1099, 727), "nv": (6705, 5403), "df": (115, 73), "mel": (1113, 614), "vasc": (142, 98),
              "bcc": (514, 327), "akiec": (327, 228)}
HAM_IMAGES = 10015
HAM_PART_1 = 5000  # images of the first folder
HAM_COLUMNS = ("lesion_id", "image_id", "dx", "dx_type", "age", "sex", "localization")
_HAM_SITES = ("scalp", "ear", "face", "back", "trunk", "chest", "upper extremity", "abdomen", "unknown",
              "lower extremity", "genital", "neck", "hand", "foot", "acral")
_MOST_IMAGES_A_LESION = 6

# ISIC 2020 (Rotemberg and others, 2021).
ISIC_IMAGES, ISIC_PATIENTS, ISIC_MELANOMAS = 33126, 2056, 584
ISIC_COLUMNS = ("image_name", "patient_id", "sex", "age_approx", "anatom_site_general_challenge", "diagnosis",
                "benign_malignant", "target")
_ISIC_SITES = ("head/neck", "upper extremity", "lower extremity", "torso", "palms/soles", "oral/genital")
# (width, height) and their share, about.
_ISIC_SIZES = (((6000, 4000), 0.45), ((640, 480), 0.23), ((5184, 3456), 0.15), ((1920, 1080), 0.10),
               ((3264, 2448), 0.04), ((1024, 768), 0.03))
_HAM, _ISIC = 1, 2  # first part of the random keys


def draw_lesion(rng_key: Sequence[int], diagnosis: str = "nv", *, view: int = 0, skin_key: Sequence[int] | None = None,
                height: int = 450, width: int = 600) -> NDArray[np.uint8]:
    """One picture, RGB uint8 [height, width, 3], a pure function of the arguments.

    ``rng_key`` names the lesion, ``view`` the photograph of it, ``skin_key`` the patient (the lesion's own by
    default). ``diagnosis`` is one of lesion_traits.DIAGNOSES.
    """
    skin = draw_skin(skin_key if skin_key is not None else rng_key)
    return paint(skin, draw_lesion_traits(rng_key, diagnosis), draw_view(rng_key, view), height, width)


def write_ham10000(folder: Path, num_images: int = HAM_IMAGES, seed: int = 0, *, jobs: int = 1,
                   quality: int = 90) -> None:
    """Write HAM10000_metadata.csv and both image folders, 600x450 JPEG. Needs at least 7 images."""
    shares = {dx: images / HAM_IMAGES for dx, (images, _) in HAM_COUNTS.items()}
    rng = random_state(_HAM, seed)
    image_ids = (24306 + rng.permutation(num_images)).tolist()
    lesion_ids = iter(rng.permutation(num_images).tolist())
    in_first = 24306 + round(num_images * HAM_PART_1 / HAM_IMAGES)
    rows: list[tuple[str, ...]] = []
    work: list[_Picture] = []
    lesion = 0
    for dx, count in _apportion(shares, num_images).items():
        images, lesions = HAM_COUNTS[dx]
        for views in _spread(rng, count, max(1, round(count * lesions / images)), most=_MOST_IMAGES_A_LESION):
            lesion_id, key = f"HAM_{next(lesion_ids):07d}", (_HAM, seed, lesion)
            person = _person(rng, _HAM_SITES)
            kind = "histo" if dx != "nv" or rng.random() < 0.4 else "follow_up" if rng.random() < 0.8 else "consensus"
            for view in range(views):
                number = image_ids.pop()
                name = f"ISIC_{number:07d}"
                part = "HAM10000_images_part_1" if number < in_first else "HAM10000_images_part_2"
                rows.append((lesion_id, name, dx, kind, *person))
                draw = partial(draw_lesion, key, dx, view=view)
                work.append((folder / part / f"{name}.jpg", draw, quality))
            lesion += 1
    _write(folder, "HAM10000_metadata.csv", HAM_COLUMNS, rows, work, jobs)


def write_isic2020(folder: Path, num_images: int = ISIC_IMAGES, seed: int = 0, *, jobs: int = 1, quality: int = 90,
                   max_side: int | None = None, prevalence: float = ISIC_MELANOMAS / ISIC_IMAGES) -> None:
    """Write ISIC_2020_Training_GroundTruth.csv and train/, JPEG of sizes from 640x480 to 6000x4000.

    ``max_side`` draws larger pictures smaller: their longer side becomes this many pixels. ``prevalence`` is the
    melanomas' share of the pictures.
    """
    rng = random_state(_ISIC, seed)
    num_patients = max(2, round(num_images * ISIC_PATIENTS / ISIC_IMAGES))
    melanomas = np.zeros(num_images, bool)
    melanomas[rng.choice(num_images, max(1, round(num_images * prevalence)), replace=False)] = True
    names = rng.choice(10_000_000, num_images, replace=False).tolist()
    patients = rng.choice(10_000_000, num_patients, replace=False).tolist()
    rows: list[tuple[str, ...]] = []
    work: list[_Picture] = []
    image = 0
    for patient, count in enumerate(_spread(rng, num_images, num_patients, most=115, uneven=True)):
        age, sex, _ = _person(rng, _ISIC_SITES)
        (width, height) = _ISIC_SIZES[rng.choice(len(_ISIC_SIZES), p=[share for _, share in _ISIC_SIZES])][0]
        shrink = max(1.0, max(width, height) / (max_side or max(width, height)))
        size = {"width": round(width / shrink), "height": round(height / shrink)}
        last_benign: tuple[int, int] | None = None
        for _ in range(count):
            melanoma, view, lesion = bool(melanomas[image]), 0, image
            if not melanoma and last_benign is not None and rng.random() < 0.1:  # the same lesion, seen again
                lesion, view = last_benign[0], last_benign[1] + 1
            if not melanoma:
                last_benign = (lesion, view)
            of_lesion = random_state(_ISIC, seed, lesion, 5)  # so that all pictures of a lesion agree
            other, site = of_lesion.random(), _ISIC_SITES[int(of_lesion.integers(len(_ISIC_SITES)))]
            diagnosis = "melanoma" if melanoma else ("seborrheic keratosis" if other < 0.005 else
                                                     "nevus" if other < 0.165 else "unknown")
            drawn_as = "mel" if melanoma else "bkl" if other < 0.005 or other > 0.92 else "nv"
            name = f"ISIC_{names[image]:07d}"
            rows.append((name, f"IP_{patients[patient]:07d}", sex, age, site, diagnosis,
                         "malignant" if melanoma else "benign", str(int(melanoma))))
            draw = partial(draw_lesion, (_ISIC, seed, lesion), drawn_as, view=view, skin_key=(_ISIC, seed, patient, 7),
                           **size)
            work.append((folder / "train" / f"{name}.jpg", draw, quality))
            image += 1
    _write(folder, "ISIC_2020_Training_GroundTruth.csv", ISIC_COLUMNS, rows, work, jobs)


_Picture = tuple[Path, Callable[[], NDArray[np.uint8]], int]


def _write(folder: Path, table: str, columns: Sequence[str], rows: Iterable[Sequence[str]], work: Sequence[_Picture],
           jobs: int) -> None:
    for parent in {path.parent for path, _, _ in work}:
        parent.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(jobs) as pool:  # drawing and encoding happen outside the interpreter lock
        for _ in pool.map(_save, work):
            pass
    # The table comes last: where it stands, the pictures are complete.
    with (folder / table).open("w", newline="", encoding="ascii") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)


def _save(picture: _Picture) -> None:
    path, draw, quality = picture
    path.write_bytes(simplejpeg.encode_jpeg(draw(), quality=quality, colorspace="RGB", colorsubsampling="420"))


def _person(rng: np.random.Generator, sites: Sequence[str]) -> tuple[str, str, str]:
    """Age (multiples of 5; sometimes unknown), sex and site, as the tables write them."""
    age = "" if rng.random() < 0.006 else f"{5 * int(np.clip(round(rng.normal(52, 17) / 5), 0, 17))}.0"
    return age, "male" if rng.random() < 0.53 else "female", sites[int(rng.integers(len(sites)))]


def _apportion(shares: dict[str, float], total: int) -> dict[str, int]:
    """Whole numbers of about these shares that sum to ``total``, none below 1: the largest remainders round up."""
    if total < len(shares):
        raise ValueError(f"{total} images can not show {len(shares)} classes; ask for at least {len(shares)}")
    counts = {name: max(1, int(share * total)) for name, share in shares.items()}
    by_remainder = sorted(shares, key=lambda name: shares[name] * total - counts[name], reverse=True)
    missing = total - sum(counts.values())
    for name in by_remainder[:max(missing, 0)]:
        counts[name] += 1
    counts[max(counts, key=lambda name: counts[name])] += min(missing, 0)
    return counts


def _spread(rng: np.random.Generator, total: int, parts: int, *, most: int, uneven: bool = False) -> list[int]:
    """Split ``total`` into ``parts`` numbers between 1 and ``most`` at random, ``uneven``: with a long tail."""
    assert parts <= total <= parts * most
    counts = np.ones(parts, np.int64)
    weight = rng.gamma(1.2, size=parts) if uneven else np.ones(parts)
    while (left := total - int(counts.sum())) > 0:
        open_ = np.flatnonzero(counts < most)
        chosen = rng.choice(open_, left, p=weight[open_] / weight[open_].sum())
        counts = np.minimum(counts + np.bincount(chosen, minlength=parts), most)
    return [int(count) for count in counts]


def main() -> int:
    parser = argparse.ArgumentParser(description="Generate skin lesions in the layout of a real data set.")
    parser.add_argument("layout", choices=("ham10000", "isic2020"))
    parser.add_argument("out", type=Path, help="folder to write into")
    parser.add_argument("--images", type=int, help="how many [as many as the real data set has]")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1, help="pictures drawn at a time [1]")
    parser.add_argument("--quality", type=int, default=90, help="of the JPEG files [90]")
    parser.add_argument("--max-side", type=int, help="isic2020: longer side in pixels of what would be larger")
    parser.add_argument("--prevalence", type=float, default=ISIC_MELANOMAS / ISIC_IMAGES,
                        help="isic2020: the melanomas' share of the pictures [as in the real data set, 0.0176]")
    options = parser.parse_args()
    ham = options.layout == "ham10000"
    count = options.images if options.images is not None else HAM_IMAGES if ham else ISIC_IMAGES
    least = len(HAM_COUNTS) if ham else 2
    if count < least or options.seed < 0 or options.jobs < 1 or not 1 <= options.quality <= 100 or (
            options.max_side is not None and (ham or options.max_side < 64)) or (
            not 0 < options.prevalence < 1):
        parser.error(f"--images must be at least {least}, --seed 0 or more, --jobs 1 or more, --quality 1 to 100, "
                     "--prevalence between 0 and 1, and --max-side at least 64 and with isic2020 only")
    began = time.perf_counter()
    try:
        if ham:
            write_ham10000(options.out, count, options.seed, jobs=options.jobs, quality=options.quality)
        else:
            write_isic2020(options.out, count, options.seed, jobs=options.jobs, quality=options.quality,
                           max_side=options.max_side, prevalence=options.prevalence)
    except OSError as error:
        print(f"error: the pictures can not be written: {error}", file=sys.stderr)
        return 2
    taken = time.perf_counter() - began
    print(f"{count} pictures in {options.out} ({count / taken:.0f}/s)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
