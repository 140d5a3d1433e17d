"""The image files below a folder, and what a table may call them."""

from __future__ import annotations

import os
import stat
from collections import Counter, defaultdict
from pathlib import Path

from distrib.data.samples import readable
from distrib.errors import DataError

EXTENSIONS = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".gif", ".bmp", ".tif", ".tiff", ".webp",
                        ".ppm", ".pgm", ".pbm", ".pnm", ".jp2"})
# Images that are not read here: to pass over them in silence would lose them.
_FOREIGN = frozenset({".heic", ".heif", ".avif", ".dcm", ".dicom", ".svs", ".psd", ".tga", ".exr", ".jxl", ".cr2",
                      ".nef", ".arw", ".dng", ".svg", ".eps", ".nii", ".mha"})


class ImageFinder:
    """Finds image files below a folder by what a table calls them."""

    def __init__(self, source: Path) -> None:
        self.files, self.notes = images_below(source)
        self._exact = set(self.files)
        self._by_name: dict[str, list[str]] = defaultdict(list)
        self._by_stem: dict[str, list[str]] = defaultdict(list)
        for path in self.files:
            stem, extension = os.path.splitext(path.rpartition("/")[2])
            self._by_name[stem + extension.lower()].append(path)
            self._by_stem[stem].append(path)

    def find(self, image: str) -> list[str] | None:
        """Relative paths that match; None if the name is absolute or leads out of the folder."""
        name = image.replace("\\", "/")
        parts = [part for part in name.split("/") if part not in ("", ".")]
        if name.startswith("/") or name[1:2] == ":" or ".." in parts:
            return None
        wanted = "/".join(parts)
        if wanted in self._exact:
            return [wanted]
        folder, slash, last = wanted.rpartition("/")
        stem, extension = os.path.splitext(last)
        if extension.lower() in EXTENSIONS:
            candidates = self._by_name.get(stem + extension.lower(), [])
        else:
            candidates = self._by_stem.get(last, [])
        if not slash:
            return candidates
        return [path for path in candidates if f"/{path}".rpartition("/")[0].endswith(f"/{folder}")]


def images_below(source: Path) -> tuple[list[str], list[str]]:
    """(relative paths of all image files, sorted; notes about what was passed over). Follows links, not loops."""
    if not source.is_dir():
        raise DataError(f"{source} is not a folder", "there is nothing to prepare", "name the folder of the images")
    files: list[str] = []
    ignored: Counter[str] = Counter()

    def walk(folder: str, prefix: str, above: frozenset[tuple[int, int]]) -> None:
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
            status = os.stat(folder)
        except OSError as error:
            raise DataError(f"the folder {readable(folder)} can not be read: {error.strerror}",
                            "its images would be missing", "give yourself permission, or move it away") from error
        here = (status.st_dev, status.st_ino)
        if here in above:
            return
        for entry in entries:
            if entry.name.startswith("."):
                continue
            path = f"{prefix}{entry.name}"
            if os.path.isdir(entry.path):  # entry.is_dir() raises for a link to itself
                walk(entry.path, f"{path}/", above | {here})
                continue
            extension = os.path.splitext(entry.name)[1].lower()
            if extension in EXTENSIONS or extension in _FOREIGN:
                files.append(path)
            else:
                ignored[extension or "no extension"] += 1

    walk(os.fspath(source), "", frozenset())
    notes = []
    if ignored:
        kinds = ", ".join(f"{count} {extension}" for extension, count in sorted(ignored.items()))
        notes.append(f"files that are no images were passed over: {kinds}")
    return sorted(files), notes


def read_image_file(path: Path) -> bytes:
    """The bytes of a regular file. Raises DataError with the reason as its fact."""
    try:
        # A named pipe would wait for a writer for ever.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with os.fdopen(fd, "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise DataError("is not a regular file")
            return file.read()
    except OSError as error:
        raise DataError(f"can not be read: {error.strerror}") from error
