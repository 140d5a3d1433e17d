"""Which images a source folder holds, and what each is labelled: class folders, or a CSV beside the images."""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from distrib.data.image_files import EXTENSIONS, ImageFinder, images_below
from distrib.data.samples import Listing, Sample, readable, sorted_classes
from distrib.data.split import split_named
from distrib.errors import DataError, TableError, counted

_SHOWN = 10
_EMPTY = ("", "nan")  # nan: how pandas writes a missing value


@dataclass(frozen=True)
class Columns:
    """Names of the columns of a labels CSV."""

    image: str
    label: str
    group: str | None = None
    split: str | None = None
    kept: tuple[str, ...] = ()
    """Further ones, whose values go with the samples."""

    def named(self) -> list[str]:
        first = [name for name in (self.image, self.label, self.group, self.split) if name is not None]
        return [*first, *(name for name in self.kept if name not in first)]


def read_folders(source: Path, least_classes: int = 2) -> Listing:
    """Every image below SOURCE/CLASS/, or below SOURCE/SPLIT/CLASS/ where all top folders are named as splits.

    Names count as splits only if all of them are (train, val or valid or validation, test) and train is among
    them. Raises DataError.
    """
    files, notes = images_below(source)
    tops = sorted({path.split("/", 1)[0] for path in files if "/" in path})
    splits = {top: split_named(top) for top in tops}
    given = bool(tops) and None not in splits.values() and "train" in splits.values() and len(tops) > 1
    depth = 2 if given else 1
    loose = [path for path in files if path.count("/") < depth]
    if not files:
        raise DataError(f"{source} holds no images", "there is nothing to prepare",
                        f"name a folder of class folders with {', '.join(sorted(EXTENSIONS))} files")
    if len(loose) == len(files) and not given:
        raise DataError(f"{source} holds {counted(len(files), 'image')} and no class folders",
                        "their labels are unknown",
                        "put each class into a folder of its own, or give --labels FILE.csv")
    if loose:
        lie = counted(len(loose), f"image in {source} lies", f"images in {source} lie")
        raise DataError(f"{lie} in no class folder: {_some(loose)}",
                        "their labels are unknown", "move them into class folders, or elsewhere")
    samples = []
    for path in files:
        parts = path.split("/")
        samples.append(Sample(path, readable(parts[depth - 1]), split=splits[parts[0]] if given else None))
    return _listing(samples, source, given, notes, least_classes, "put each class into a folder of its own below it")


def read_table(source: Path, table: Path, columns: Columns, least_classes: int = 2) -> Listing:
    """The images that a CSV lists, found below SOURCE by relative path, by name or by name without extension.

    Raises TableError for every mistake in the table; images that are not there are in ``missing``.
    """
    rows = list(_rows(table, columns))
    if not rows:
        raise TableError(f"{table} has a header and no rows", "there is nothing to prepare", "check the file")
    _refuse_empty(table, columns, rows)
    finder = ImageFinder(source)
    found: dict[str, int] = {}
    samples, missing, problems = [], [], _Problems(table)
    for line, row in rows:
        image = row[columns.image]
        matches = finder.find(image)
        if matches is None:
            problems.add("paths that lead out of the source folder", f"line {line}: {image}")
        elif not matches:
            missing.append((readable(image), f"{table.name} line {line} lists it and there is no such file"))
        elif len(matches) > 1:
            shown = " and ".join(readable(path) for path in matches[:3])
            problems.add("images that could be several files", f"line {line}: {image} is {shown}")
        elif matches[0] in found:
            problems.add("images that stand twice", f"lines {found[matches[0]]} and {line}: {image}")
        else:
            found[matches[0]] = line
            split = split_named(row[columns.split]) if columns.split else None
            if columns.split and split is None:
                problems.add("splits other than train, val and test", f"line {line}: {row[columns.split]}")
            group = row[columns.group] if columns.group else ""
            samples.append(Sample(matches[0], row[columns.label], None if group.lower() in _EMPTY else group, split,
                                  tuple((name, row[name]) for name in columns.kept)))
    problems.raise_first()
    notes = finder.notes
    if unlisted := len(finder.files) - len(found):
        was = counted(unlisted, "image was", "images were")
        notes.append(f"{was} not used: below {source}, and not listed in {table.name}")
    if columns.group and (alone := sum(sample.group is None for sample in samples)):
        notes.append(f"{counted(alone, 'row has', 'rows have')} no {columns.group!r}: each "
                     "of these images is a group of its own")
    if not samples:
        first = rows[0][1][columns.image]
        raise TableError(f"none of the {len(rows)} images in {table} is below {source} (the first is {first!r})",
                         "there is nothing to prepare", "check SOURCE and --image-column")
    listing = _listing(samples, source, columns.split is not None, notes, least_classes, "check --label-column")
    return replace(listing, missing=missing)


def _listing(samples: list[Sample], source: Path, given: bool, notes: list[str], least_classes: int,
             remedy: str) -> Listing:
    classes = sorted_classes(sample.label for sample in samples)
    if len(classes) < least_classes:
        raise DataError(f"all {len(samples)} images of {source} are of one class, {classes[0]!r}",
                        "there is nothing to tell apart", remedy)
    by_case = defaultdict(set)
    for name in classes:
        by_case[name.casefold()].add(name)
    notes = notes + [f"classes {' and '.join(sorted(names))} differ only in case: are they one?"
                     for names in by_case.values() if len(names) > 1]
    return Listing(sorted(samples, key=lambda sample: sample.path), classes, given, [], notes)


def _rows(table: Path, columns: Columns) -> Iterator[tuple[int, dict[str, str]]]:
    """(line number, named columns, stripped) of every row that is not blank. Raises TableError."""
    text = _text(table)
    delimiter = _delimiter(text, columns)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
        _check_header(table, header, columns)
        places = {name: header.index(name) for name in columns.named()}
        for fields in reader:
            if not any(field.strip() for field in fields):
                continue
            if len(fields) != len(header):
                raise TableError(f"{table} line {reader.line_num} has {len(fields)} fields, the header {len(header)}",
                                 "its columns can not be told apart", "quote fields that hold the separator")
            yield reader.line_num, {name: fields[place].strip() for name, place in places.items()}
    except csv.Error as error:
        raise TableError(f"{table} line {reader.line_num} is no valid CSV: {error}", "it can not be read",
                         "check the quotes in that line") from error


def _text(table: Path) -> str:
    try:
        raw = table.read_bytes()
    except OSError as error:
        raise TableError(f"the labels {table} can not be read: {error.strerror}", "there is nothing to prepare",
                         "check the path") from error
    if raw.startswith((b"\x1f\x8b", b"PK")):
        raise TableError(f"{table} is a compressed file or a spreadsheet, not text", "it can not be read",
                         "unpack it, or export it as CSV")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise TableError(f"{table} is not UTF-8 text (byte {error.start}, line {line})", "its labels can not be read",
                         "save it as CSV UTF-8") from error


def _delimiter(text: str, columns: Columns) -> str:
    """The separator that makes the named columns appear; a comma if none does."""
    first = next((line for line in text.splitlines() if line.strip()), "")
    for delimiter in (",", ";", "\t"):
        try:
            names = [name.strip() for name in next(csv.reader([first], delimiter=delimiter), [])]
        except csv.Error:  # reading the rows will tell it with its line
            break
        if columns.image in names or columns.label in names:
            return delimiter
    return ","


def _check_header(table: Path, header: Sequence[str], columns: Columns) -> None:
    if not any(header):
        raise TableError(f"{table} is empty", "there is nothing to prepare", "check the file")
    have = ", ".join(header)
    for name in columns.named():
        if name not in header:
            raise TableError(f"{table} has no column {name!r} (it has {have})", "its images can not be labelled",
                             "name one of these columns")
        if header.count(name) > 1:
            raise TableError(f"{table} has the column {name!r} twice", "one of them would be ignored", "rename one")


def _refuse_empty(table: Path, columns: Columns, rows: Sequence[tuple[int, dict[str, str]]]) -> None:
    for name in (columns.image, columns.label):
        lines = [str(line) for line, row in rows if row[name].lower() in _EMPTY]
        if lines:
            raise TableError(f"{table} has {counted(len(lines), 'row')} without {name!r}: line {_some(lines)}",
                             "they can not be used", "fill them in, or delete the rows")


class _Problems:
    """Mistakes of a table by kind; the first kind met is raised, with its first places."""

    def __init__(self, table: Path) -> None:
        self._table = table
        self._places: dict[str, list[str]] = defaultdict(list)

    def add(self, kind: str, place: str) -> None:
        self._places[kind].append(place)

    def raise_first(self) -> None:
        for kind, places in self._places.items():
            raise TableError(f"{self._table} lists {kind} ({len(places)}): {_some(places)}",
                             "nothing was written", "correct these rows")


def _some(items: Sequence[str]) -> str:
    shown = ", ".join(readable(item) for item in items[:_SHOWN])
    return shown + (f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else "")


