"""The generator of lesions: layouts, statistics, determinism; and the experiments on them."""

from __future__ import annotations

import csv
import re
import sys
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from distrib.config import load_experiment
from distrib.data.decode import decode_rgb, image_size

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
sys.path.insert(0, str(EXAMPLES / "melanoma"))

import lesions  # noqa: E402
from lesion_traits import DIAGNOSES, draw_lesion_traits  # noqa: E402


def read_table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="ascii") as file:
        return list(csv.DictReader(file))


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("diagnosis", DIAGNOSES)
def test_a_picture_depends_on_its_key_and_view_alone(diagnosis: str) -> None:
    image = lesions.draw_lesion((1, 2), diagnosis, height=90, width=120)
    assert image.shape == (90, 120, 3)
    assert image.dtype == np.uint8
    assert np.array_equal(image, lesions.draw_lesion((1, 2), diagnosis, height=90, width=120))
    assert not np.array_equal(image, lesions.draw_lesion((1, 3), diagnosis, height=90, width=120))
    assert not np.array_equal(image, lesions.draw_lesion((1, 2), diagnosis, view=1, height=90, width=120))


def test_an_unknown_diagnosis_is_refused() -> None:
    with pytest.raises(KeyError):
        lesions.draw_lesion((0,), "wart")


def test_large_pictures_have_the_size_asked_for() -> None:
    assert lesions.draw_lesion((0,), height=1001, width=1999).shape == (1001, 1999, 3)


def test_a_lesion_is_darker_than_the_skin_around_it() -> None:
    darker = 0
    for key in range(20):
        image = lesions.draw_lesion((3, key), "mel", height=90, width=120).astype(float)
        darker += image[35:55, 50:70].mean() < image[35:55, :12].mean()
    assert darker >= 18  # a lesion may lie off the middle


def test_pictures_of_one_lesion_are_more_alike_than_those_of_two() -> None:
    def colors(key: int, view: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
        middle = lesions.draw_lesion((5, key), "nv", view=view, height=90, width=120)[20:70, 30:90]
        return np.quantile(middle.reshape(-1, 3), [0.1, 0.5, 0.9], axis=0)

    drawn = [[colors(key, view) for view in range(3)] for key in range(12)]
    same = np.mean([np.abs(views[0] - other).mean() for views in drawn for other in views[1:]])
    different = np.mean([np.abs(one[0] - other[0]).mean() for one in drawn for other in drawn if one is not other])
    assert same < 0.6 * different


def test_melanomas_differ_from_nevi_by_degree() -> None:
    mel, nv = ([draw_lesion_traits((9, key), dx) for key in range(1500)] for dx in ("mel", "nv"))
    truth = [1] * len(mel) + [0] * len(nv)
    assert roc_auc_score(truth, [lesion.suspicion for lesion in mel + nv]) == pytest.approx(0.921, abs=0.02)
    for trait in ("asymmetry", "irregularity", "dark", "blue", "radius"):
        # Every letter of the rule tells something, and none tells all.
        assert 0.7 < roc_auc_score(truth, [getattr(lesion, trait) for lesion in mel + nv]) < 0.92, trait


def test_ham10000_has_the_layout_of_the_real_one(tmp_path: Path) -> None:
    lesions.write_ham10000(tmp_path, 40, seed=1)
    rows = read_table(tmp_path / "HAM10000_metadata.csv")
    assert tuple(rows[0]) == ("lesion_id", "image_id", "dx", "dx_type", "age", "sex", "localization")
    parts = [tmp_path / "HAM10000_images_part_1", tmp_path / "HAM10000_images_part_2"]
    files = [sorted(path.name for path in part.iterdir()) for part in parts]
    assert [len(names) for names in files] == [20, 20]
    assert files[0][-1] < files[1][0]
    assert sorted(f"{row['image_id']}.jpg" for row in rows) == sorted(files[0] + files[1])
    assert {path.name for path in tmp_path.iterdir()} == {"HAM10000_metadata.csv", *(part.name for part in parts)}
    for row in rows:
        assert re.fullmatch(r"HAM_\d{7}", row["lesion_id"])
        assert re.fullmatch(r"ISIC_00\d{5}", row["image_id"])
    content = (parts[0] / files[0][0]).read_bytes()
    assert image_size(content, "jpg") == (450, 600)
    assert decode_rgb(content, "jpg").std() > 5


def test_isic2020_has_the_layout_of_the_real_one(tmp_path: Path) -> None:
    lesions.write_isic2020(tmp_path, 30, seed=1, max_side=160)
    rows = read_table(tmp_path / "ISIC_2020_Training_GroundTruth.csv")
    assert tuple(rows[0]) == ("image_name", "patient_id", "sex", "age_approx", "anatom_site_general_challenge",
                              "diagnosis", "benign_malignant", "target")
    names = sorted(path.name for path in (tmp_path / "train").iterdir())
    assert names == sorted(f"{row['image_name']}.jpg" for row in rows)
    assert len(names) == 30
    for row in rows:
        assert re.fullmatch(r"ISIC_\d{7}", row["image_name"])
        assert re.fullmatch(r"IP_\d{7}", row["patient_id"])
        assert row["benign_malignant"] == ("malignant" if row["target"] == "1" else "benign")
        assert (row["diagnosis"] == "melanoma") == (row["target"] == "1")
    assert all(max(image_size(content, "jpg")) == 160 for name, content in tree(tmp_path / "train").items())


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Tables without pictures; the paths that would have been written."""
    paths: list[Path] = []
    monkeypatch.setattr(lesions, "_save", lambda picture: paths.append(picture[0]))
    return paths


def test_ham10000_at_full_size_has_the_real_counts(tmp_path: Path, undrawn: list[Path]) -> None:
    lesions.write_ham10000(tmp_path)
    rows = read_table(tmp_path / "HAM10000_metadata.csv")
    assert Counter(row["dx"] for row in rows) == {dx: images for dx, (images, _) in lesions.HAM_COUNTS.items()}
    of_lesion = defaultdict(list)
    for row in rows:
        of_lesion[row["lesion_id"]].append(row)
    assert len(of_lesion) == 7470
    assert len({row["image_id"] for row in rows}) == len(rows) == 10015
    assert max(map(len, of_lesion.values())) <= 6
    for group in of_lesion.values():
        assert len({(row["dx"], row["age"], row["sex"], row["localization"]) for row in group}) == 1
    assert Counter(path.parent.name for path in undrawn) == {"HAM10000_images_part_1": 5000,
                                                             "HAM10000_images_part_2": 5015}


def test_isic2020_at_full_size_has_the_real_counts(tmp_path: Path, undrawn: list[Path]) -> None:
    lesions.write_isic2020(tmp_path)
    rows = read_table(tmp_path / "ISIC_2020_Training_GroundTruth.csv")
    assert len({row["image_name"] for row in rows}) == len(set(undrawn)) == len(rows) == 33126
    assert Counter(row["target"] for row in rows) == {"0": 32542, "1": 584}
    of_patient = Counter(row["patient_id"] for row in rows)
    assert len(of_patient) == 2056
    assert max(of_patient.values()) <= 115
    assert np.std(list(of_patient.values())) > 8  # some patients have many pictures


def test_the_seed_alone_decides(tmp_path: Path) -> None:
    for name, seed, jobs in (("a", 1, 1), ("b", 1, 3), ("c", 2, 1)):
        lesions.write_ham10000(tmp_path / name / "ham", 14, seed, jobs=jobs)
        lesions.write_isic2020(tmp_path / name / "isic", 8, seed, jobs=jobs, max_side=128)
    assert tree(tmp_path / "a") == tree(tmp_path / "b")
    assert tree(tmp_path / "a") != tree(tmp_path / "c")


@settings(max_examples=50)
@given(st.integers(7, 20000))
def test_classes_sum_to_the_number_asked_for(total: int) -> None:
    shares = {dx: images / lesions.HAM_IMAGES for dx, (images, _) in lesions.HAM_COUNTS.items()}
    counts = lesions._apportion(shares, total)
    assert sum(counts.values()) == total
    assert min(counts.values()) >= 1
    assert all(abs(counts[dx] - shares[dx] * total) < 7 for dx in shares)


@settings(max_examples=50)
@given(st.integers(1, 200), st.integers(0, 500), st.booleans())
def test_pictures_spread_within_bounds(parts: int, extra: int, uneven: bool) -> None:
    total = min(parts + extra, 6 * parts)
    counts = lesions._spread(np.random.default_rng(0), total, parts, most=6, uneven=uneven)
    assert len(counts) == parts
    assert sum(counts) == total
    assert min(counts) >= 1
    assert max(counts) <= 6


@pytest.mark.parametrize("arguments", [["ham10000", "--images", "6"], ["ham10000", "--max-side", "100"],
                                       ["isic2020", "--images", "1"], ["isic2020", "--jobs", "0"],
                                       ["isic2020", "--seed", "-1"], ["moles"]])
def test_bad_arguments_exit_2_and_write_nothing(arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["lesions.py", arguments[0], str(tmp_path / "out"), *arguments[1:]])
    with pytest.raises(SystemExit) as ended:
        lesions.main()
    assert ended.value.code == 2
    assert "error:" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_command_line_writes_what_the_function_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["lesions.py", "ham10000", str(tmp_path / "a"), "--images", "9", "--seed", "4"])
    assert lesions.main() == 0
    lesions.write_ham10000(tmp_path / "b", 9, seed=4)
    assert tree(tmp_path / "a") == tree(tmp_path / "b")


@pytest.mark.parametrize("name", ["ham10000", "isic2020"])
def test_the_experiments_load(name: str) -> None:
    path = EXAMPLES / "melanoma" / f"{name}.yaml"
    experiment = load_experiment(path)
    assert experiment.data.augment.rotate_degrees == 180
    assert load_experiment(path, ["train.epochs=1", "model.name=small_cnn"]).train.epochs == 1
    positive = experiment.evaluate.positive_class
    assert positive == (None if name == "ham10000" else "1")
