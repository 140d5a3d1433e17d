"""What a source folder holds and what each image is labelled; every mistake in a table is one clear error."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distrib.data.image_files import read_image_file
from distrib.data.labels import Columns, read_folders, read_table
from distrib.data.samples import Sample, sample_keys, sorted_classes
from distrib.errors import DataError, TableError

COLUMNS = Columns("image", "label")


def make(folder: Path, *names: str) -> Path:
    """Empty files; nothing here reads them."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return folder


def table(folder: Path, text: str | bytes) -> Path:
    path = folder / "labels.csv"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


# Class folders


def test_class_folders_with_folders_below(tmp_path: Path) -> None:
    make(tmp_path, "cat/b.PNG", "cat/2020/a.jpg", "dog/c.jpeg", "dog/.hidden.jpg", ".git/x.jpg", "dog/notes.txt")
    listing = read_folders(tmp_path)
    assert listing.samples == [Sample("cat/2020/a.jpg", "cat"), Sample("cat/b.PNG", "cat"), Sample("dog/c.jpeg", "dog")]
    assert listing.classes == ("cat", "dog")
    assert not listing.given_splits
    assert listing.notes == ["files that are no images were passed over: 1 .txt"]


def test_formats_that_are_not_read_are_not_passed_over_in_silence(tmp_path: Path) -> None:
    make(tmp_path, "cat/a.heic", "cat/b.jpg", "dog/c.dcm")
    assert [sample.path for sample in read_folders(tmp_path).samples] == ["cat/a.heic", "cat/b.jpg", "dog/c.dcm"]


def test_split_folders_are_recognised_only_when_unambiguous(tmp_path: Path) -> None:
    make(tmp_path / "a", "Train/cat/1.jpg", "Train/dog/2.jpg", "valid/cat/3.jpg", "test/dog/4.jpg")
    listing = read_folders(tmp_path / "a")
    assert listing.given_splits
    assert [(sample.label, sample.split) for sample in listing.samples] == \
        [("cat", "train"), ("dog", "train"), ("dog", "test"), ("cat", "val")]
    make(tmp_path / "b", "train/1.jpg", "plane/2.jpg")  # vehicles
    assert read_folders(tmp_path / "b").classes == ("plane", "train")
    make(tmp_path / "c", "train/1.jpg", "test/2.jpg")
    with pytest.raises(DataError, match="in no class folder"):
        read_folders(tmp_path / "c")


def test_links_are_followed_and_loops_are_not(tmp_path: Path) -> None:
    make(tmp_path / "elsewhere", "x.jpg")
    make(tmp_path / "source", "dog/y.jpg")
    os.symlink(tmp_path / "elsewhere", tmp_path / "source" / "cat")
    os.symlink(tmp_path / "source", tmp_path / "source" / "dog" / "again")
    listing = read_folders(tmp_path / "source")
    assert [sample.path for sample in listing.samples] == ["cat/x.jpg", "dog/y.jpg"]


@pytest.mark.parametrize(("names", "message"), [
    ([], "holds no images"),
    (["readme.txt"], "holds no images"),
    (["a.jpg", "b.jpg"], "no class folders"),
    (["cat/a.jpg"], "of one class, 'cat'"),
    (["cat/a.jpg", "dog/b.jpg", "c.jpg"], "1 image .* lies in no class folder: c.jpg"),
])
def test_folders_without_classes_are_refused(tmp_path: Path, names: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_folders(make(tmp_path, *names))


def test_a_source_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    for source in (tmp_path / "gone", make(tmp_path, "file") / "file"):
        with pytest.raises(DataError, match="is not a folder"):
            read_folders(source)


# Tables


def test_ham10000(tmp_path: Path) -> None:
    make(tmp_path, "HAM10000_images_part_1/ISIC_0027419.jpg", "HAM10000_images_part_2/ISIC_0025030.jpg",
         "HAM10000_images_part_2/ISIC_0099999.jpg")
    labels = table(tmp_path, "lesion_id,image_id,dx,dx_type,age,sex,localization\n"
                             "HAM_0000118,ISIC_0027419,bkl,histo,80.0,male,scalp\n"
                             "HAM_0000118,ISIC_0025030,mel,histo,,male,scalp\n")
    listing = read_table(tmp_path, labels, Columns("image_id", "dx", "lesion_id"))
    assert listing.samples == [Sample("HAM10000_images_part_1/ISIC_0027419.jpg", "bkl", "HAM_0000118"),
                               Sample("HAM10000_images_part_2/ISIC_0025030.jpg", "mel", "HAM_0000118")]
    assert any("1 image was" in note and "not listed" in note for note in listing.notes)


def test_isic_2020(tmp_path: Path) -> None:
    make(tmp_path, "train/ISIC_1.jpg", "train/ISIC_2.jpg", "train/ISIC_3.jpg")
    labels = table(tmp_path, "image_name,patient_id,target\nISIC_1,IP_7,1\nISIC_2,IP_7,0\nISIC_3,,0\n")
    listing = read_table(tmp_path, labels, Columns("image_name", "target", "patient_id"))
    assert listing.classes == ("0", "1")
    assert [sample.group for sample in listing.samples] == ["IP_7", "IP_7", None]
    assert any("1 row has no 'patient_id'" in note for note in listing.notes)


@pytest.mark.parametrize("text", [
    "image,label\na,x\nb,y\n",
    "\ufeffimage,label\na.jpg,x\nb.jpg,y\n",
    "image;label\r\na;x\r\nb;y\r\n",
    "image\tlabel\na\tx\nb\ty",
    ' image , label ,note\n"a.jpg", x ,"one, two"\n\n b.JPG ,y,"a\nline"\n',
    "label,image\nx,./a.jpg\ny,sub\\..jpg\n".replace("sub\\..jpg", "sub\\b.jpg"),
])
def test_dialects(tmp_path: Path, text: str) -> None:
    make(tmp_path, "a.jpg", "sub/b.jpg")
    listing = read_table(tmp_path, table(tmp_path, text), COLUMNS)
    assert [(sample.path, sample.label) for sample in listing.samples] == [("a.jpg", "x"), ("sub/b.jpg", "y")]


def test_a_path_prefix_decides_between_equal_names(tmp_path: Path) -> None:
    make(tmp_path, "left/1.jpg", "right/1.jpg", "very/left/2.jpg")
    labels = table(tmp_path, "image,label\nleft/1,x\nright/1.jpg,y\nleft/2,y\n")
    listing = read_table(tmp_path, labels, COLUMNS)
    assert [sample.path for sample in listing.samples] == ["left/1.jpg", "right/1.jpg", "very/left/2.jpg"]


def test_given_splits(tmp_path: Path) -> None:
    make(tmp_path, "a.jpg", "b.jpg", "c.jpg")
    labels = table(tmp_path, "image,label,fold\na,x,TRAIN\nb,y,Valid\nc,y,test\n")
    listing = read_table(tmp_path, labels, Columns("image", "label", None, "fold"))
    assert listing.given_splits
    assert [sample.split for sample in listing.samples] == ["train", "val", "test"]
    with pytest.raises(TableError, match=r"splits other than train, val and test.*line 2: a"):
        read_table(tmp_path, labels, Columns("image", "label", None, "image"))


def test_rows_without_files_are_listed_with_their_line(tmp_path: Path) -> None:
    make(tmp_path, "a.jpg", "b.jpg")
    listing = read_table(tmp_path, table(tmp_path, "image,label\na,x\ngone,y\nb,y\n"), COLUMNS)
    assert listing.missing == [("gone", "labels.csv line 3 lists it and there is no such file")]


@pytest.mark.parametrize(("text", "message"), [
    (b"", "is empty"),
    (b"image,label\n", "no rows"),
    (b"picture,label\na,x\n", "no column 'image' .it has picture, label"),
    (b"image,dx\na,x\n", "no column 'label' .it has image, dx"),
    (b"image,label,label\na,x,y\n", "column 'label' twice"),
    (b"image,label\na,x\nb\n", "line 3 has 1 fields, the header 2"),
    (b"image,label\na,x\nb,y,z\n", "line 3 has 3 fields, the header 2"),
    (b"image,label\na,\nb,y\n", "1 row without 'label': line 2"),
    (b"image,label\na,NaN\nb,y\n", "1 row without 'label': line 2"),
    (b"image,label\n,x\nb,y\n", "1 row without 'image': line 2"),
    (b"image,label\na,x\na.jpg,x\nb,y\n", "stand twice .1.: lines 2 and 3"),
    (b"image,label\na,x\nb,x\n", "of one class, 'x'"),
    (b"image,label\n../a,x\nb,y\n", "lead out of the source folder.*line 2: ../a"),
    (b"image,label\n/etc/a,x\nb,y\n", "lead out of the source folder"),
    (b"image,label\nC:\\a.jpg,x\nb,y\n", "lead out of the source folder"),
    (b"image,label\nc,x\nb,y\n", "could be several files.*c is (c.jpg and c.png|c.png and c.jpg)"),
    (b"image,label\nq,x\nr,y\n", "none of the 2 images.*the first is 'q'"),
    ("image,label\na,Übel\n".encode("latin-1"), "not UTF-8 text .byte 14, line 2"),
    ("image,label\na,x\n".encode("utf-16"), "not UTF-8 text"),
    (b'image,label\n"a,x\nb,y\n', "no valid CSV"),
    (b"\x1f\x8b\x08\x00", "compressed"),
    (b"PK\x03\x04", "spreadsheet"),
])
def test_mistakes_in_a_table(tmp_path: Path, text: bytes, message: str) -> None:
    make(tmp_path, "a.jpg", "b.jpg", "c.jpg", "c.png")
    with pytest.raises(DataError, match=message) as caught:
        read_table(tmp_path, table(tmp_path, text), COLUMNS)
    assert "\n" not in str(caught.value)
    assert caught.value.remedy


def test_a_table_that_is_not_there(tmp_path: Path) -> None:
    for path in (tmp_path / "gone.csv", tmp_path):
        with pytest.raises(TableError, match="can not be read"):
            read_table(make(tmp_path, "a.jpg"), path, COLUMNS)


def test_classes_that_differ_only_in_case_are_pointed_out(tmp_path: Path) -> None:
    make(tmp_path, "Mole/a.jpg", "mole/b.jpg")
    assert read_folders(tmp_path).notes == ["classes Mole and mole differ only in case: are they one?"]


# Names


def test_classes_sort_as_people_do() -> None:
    assert sorted_classes(["10", "9", "1"]) == ("1", "9", "10")
    assert sorted_classes(["-1", "0.5", "0", "b", "a10", "a9"]) == ("-1", "0", "0.5", "a9", "a10", "b")
    assert sorted_classes(["nan", "inf", "1"]) == ("1", "inf", "nan")


PATHS = st.lists(st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=30)
                 .map(lambda name: f"class/{name}.jpg"), unique=True, max_size=20)


@given(paths=PATHS)
def test_keys_are_unique_safe_and_independent_of_order(paths: list[str]) -> None:
    keys = sample_keys(paths)
    assert len({key.lower() for key in keys}) == len(paths)
    assert sample_keys(paths[::-1]) == keys[::-1]
    for key in keys:
        assert "." not in key
        assert key.isascii()
        assert len(f"{key}.json") <= 100
        assert not key.startswith(("-", "/", "_"))
        assert ".." not in key.split("/")


def test_keys_are_readable() -> None:
    assert sample_keys(["mel/ISIC_0027419.jpg", "nv/v1.2 (copy).png", "Müller/äöü.jpg"]) == \
        ["mel/ISIC_0027419", "nv/v1_2__copy", "Muller/aou"]
    assert sample_keys(["a/\udcff.jpg"]) == ["a/x"], "a name that is no UTF-8"
    jpg, png = sample_keys(["a/x.jpg", "a/x.png"])
    assert jpg.startswith("a/x-")
    assert png.startswith("a/x-")
    assert len(sample_keys(["d" * 300 + "/" + "n" * 300 + ".jpg"])[0]) <= 80


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "folder.jpg").mkdir()
    os.symlink(tmp_path / "gone", tmp_path / "link.jpg")
    for name in ("pipe.jpg", "folder.jpg", "link.jpg"):
        with pytest.raises(DataError, match=r"not a regular file|Is a directory|No such file"):
            read_image_file(tmp_path / name)
