"""Every error a user can meet, and the exit codes.

::

    DistribError                exit 2: the input or the environment is at fault, not the code
    ├── ConfigError             an experiment or cluster file, an override, an argument
    ├── DataError
    │   ├── TableError          a labels CSV
    │   ├── ImageError          one image that can not be decoded or is refused
    │   ├── ShardError          a shard, or one sample in it
    │   └── ManifestError       dataset.json
    ├── CheckpointError         a checkpoint, or a run directory
    ├── BundleError             an inference bundle
    ├── StorageError            the file system: full, read-only, gone
    ├── WorldError              ranks that do not come together
    ├── MissingPartError        an optional package that is not installed
    └── DivergedError           exit 3: the loss is not a finite number

Exit codes: 0 done; 1 a fault of this program (it prints a traceback); 2 and 3 as above;
130 and 143 stopped by SIGINT or SIGTERM, after saving.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager


class DistribError(Exception):
    """One message in three parts: the fact with the offending value, the consequence, the remedy."""

    exit_code = 2

    def __init__(self, fact: str, consequence: str = "", remedy: str = "") -> None:
        self.fact, self.consequence, self.remedy = fact, consequence, remedy
        super().__init__(self.one_line())

    def one_line(self) -> str:
        """The parts as sentences on a single line; control characters in them are escaped."""
        parts = (part.strip().rstrip(".") for part in (self.fact, self.consequence, self.remedy))
        # Sentences after the first begin with a capital; the first follows "error: ".
        sentences = " ".join((part[:1].upper() + part[1:] if number else part) + ("" if part[-1] in "?!" else ".")
                             for number, part in enumerate(filter(None, parts)))
        return printable(sentences)

    def __reduce__(self) -> tuple[type[DistribError], tuple[str, str, str]]:
        return type(self), (self.fact, self.consequence, self.remedy)


class ConfigError(DistribError):
    """An experiment or cluster file, an override or an argument is wrong."""


class DataError(DistribError):
    """The images, labels, shards or manifest are wrong."""


class TableError(DataError):
    """A labels CSV is wrong."""


class ImageError(DataError):
    """One image can not be decoded, or is refused."""


class ShardError(DataError):
    """A shard, or one sample in it, is damaged or gone."""


class ManifestError(DataError):
    """dataset.json is missing, damaged or of another format."""


class CheckpointError(DistribError):
    """A checkpoint or run directory is damaged, or does not belong to this experiment."""


class BundleError(DistribError):
    """An inference bundle is damaged, or may not be written."""


class StorageError(DistribError):
    """The file system refused: full, read-only, gone, no permission."""


class WorldError(DistribError):
    """The ranks do not come together, or one was lost."""


class MissingPartError(DistribError):
    """An optional package is not installed."""


class DivergedError(DistribError):
    """The loss or a gradient is no finite number."""

    exit_code = 3


def counted(number: int, one: str, several: str = "") -> str:
    """A number with what is counted: "1 group is", "2 groups are". Without ``several`` it is ``one`` and an s."""
    return f"{number} {one if number == 1 else several or f'{one}s'}"


def printable(text: str) -> str:
    """Text on one line: a file name may hold a newline or an escape sequence, which the terminal must not obey."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


_STORAGE_REMEDY = {
    errno.ENOSPC: "free some space, or choose another folder",
    errno.EDQUOT: "free some of your quota, or choose another folder",
    errno.EROFS: "choose a folder on a file system that is mounted for writing",
    errno.EACCES: "give yourself permission, or choose another folder",
    errno.EPERM: "give yourself permission, or choose another folder",
    errno.EFBIG: "raise the limit on the size of files (ulimit -f)",
    errno.EEXIST: "choose another path: something else has that name",
    errno.EISDIR: "choose another path: a folder has that name",
    errno.EINVAL: "choose another path",
    errno.ENOTDIR: "choose a path whose parents are folders",
    errno.EIO: "check the disk or the network file system",
    errno.ESTALE: "check the network file system: it was mounted anew or the file was replaced",
}


@contextmanager
def storage_errors(doing: str, consequence: str) -> Iterator[None]:
    """Turn an OSError inside the block into a StorageError that says what was being done."""
    try:
        yield
    except OSError as error:
        where = f" {error.filename!r}" if error.filename else ""
        remedy = _STORAGE_REMEDY.get(error.errno or 0, "check the path and the file system")
        raise StorageError(f"{doing}: {error.strerror or error}{where}", consequence, remedy) from error
