"""dataset.json: classes, splits, shards, and where every sample lies.

Columns of an index have one entry a sample, in the order of the samples in the shard. The document is
sealed (see `distrib.durable`), so labels can not change unnoticed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from distrib.documents import Sha256
from distrib.durable import SealError, open_sealed, seal
from distrib.errors import CheckpointError, ManifestError

FORMAT = "distrib-dataset/1"
RECORD_FORMAT = "distrib-run-dataset/1"
FILE_NAME = "dataset.json"
Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")
_SHARD_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")

_OF_VERSIONS: dict[str, Any] = {"version": True, "parent": True, "ancestors": True, "shards": {"__all__": {"version"}}}

Count = Annotated[int, Field(ge=0)]
Version = Annotated[int, Field(ge=1)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ShardIndex(_Part):
    """The samples of one shard, column by column."""

    key: tuple[str, ...]
    """The sample's name in the shard; unique in the dataset."""
    kind: tuple[Literal["jpg", "png"], ...]
    """How the image is encoded."""
    offset: tuple[Count, ...]
    """Byte in the shard at which the image's content begins."""
    length: tuple[Annotated[int, Field(ge=1)], ...]
    """Bytes of the image."""
    crc32: tuple[Count, ...]
    """zlib.crc32 of the image's bytes, checked at every read."""
    label: tuple[Count, ...]
    """Index into the dataset's classes."""
    group: tuple[str, ...]
    """Patient, lesion or whatever must not be torn apart; the key where there is none."""

    @model_validator(mode="after")
    def _columns_agree(self) -> ShardIndex:
        if len({len(column) for column in dict(self).values()}) != 1:
            raise ValueError("the columns of the index differ in length")
        return self


class Shard(_Part):
    name: str
    """File name of the tar, beside dataset.json."""
    split: Split
    num_samples: Annotated[int, Field(ge=1)]
    bytes: Count
    sha256: Sha256
    version: Version = 1
    """The version of the dataset that it came with."""
    index: ShardIndex

    @model_validator(mode="after")
    def _consistent(self) -> Shard:
        if not _SHARD_NAME.fullmatch(self.name):
            raise ValueError(f"{self.name!r} is no plain file name")
        if len(self.index.key) != self.num_samples:
            raise ValueError(f"{self.name} says {self.num_samples} samples and indexes {len(self.index.key)}")
        ends = (offset + length for offset, length in zip(self.index.offset, self.index.length, strict=True))
        if max(ends) > self.bytes:
            raise ValueError(f"{self.name} indexes samples past its end")
        return self


class Excluded(_Part):
    """An image that was left out, and why."""

    path: str
    reason: str


class Duplicate(_Part):
    """Two images in different splits that show the same thing."""

    kind: Literal["exact", "near"]
    first: str
    second: str
    splits: tuple[Split, Split]


class Manifest(_Part):
    classes: Annotated[tuple[str, ...], Field(min_length=2)]
    shards: Annotated[tuple[Shard, ...], Field(min_length=1)]
    preparation: dict[str, Any]
    """Options that made the images what they are; `distrib.data.ingest.IngestOptions` and the split."""
    excluded: tuple[Excluded, ...] = ()
    duplicates: tuple[Duplicate, ...] = ()
    version: Version = 1
    """1 as prepared, one more with every `distrib update`."""
    parent: Sha256 | None = None
    """The seal of the version before."""
    ancestors: tuple[Sha256, ...] = ()
    """The seals of all versions before, from the first on."""
    sha256: str = Field(default="", exclude=True)
    """The seal: identity of the dataset. Set when read from disk."""

    @model_validator(mode="after")
    def _consistent(self) -> Manifest:
        if len(set(self.classes)) != len(self.classes):
            raise ValueError("a class stands twice")
        if len({shard.name for shard in self.shards}) != len(self.shards):
            raise ValueError("a shard stands twice")
        keys: set[str] = set()
        total = 0
        for shard in self.shards:
            keys.update(shard.index.key)
            total += shard.num_samples
            if max(shard.index.label) >= len(self.classes):
                raise ValueError(f"{shard.name} has a label beyond the {len(self.classes)} classes")
        if len(keys) != total:
            raise ValueError("a sample key stands twice")
        if len(self.ancestors) != self.version - 1 or self.parent != (self.ancestors or (None,))[-1]:
            raise ValueError(f"version {self.version} does not go with its parent and {len(self.ancestors)} ancestors")
        if max(shard.version for shard in self.shards) > self.version:
            raise ValueError("a shard came with a later version")
        return self

    def to_bytes(self) -> bytes:
        """The sealed document; a first version does not speak of versions, so it is as it always was."""
        return seal(FORMAT, self.model_dump(mode="json", exclude=_OF_VERSIONS if self.version == 1 else None))

    @property
    def ingest(self) -> dict[str, Any]:
        """The recorded `distrib.data.ingest.IngestOptions`; an adopted dataset has its images as they were, so nothing
        may be lost of others either."""
        recorded: dict[str, Any] | None = self.preparation.get("ingest")
        return {"format": "png"} if recorded is None else recorded

    def samples(self, split: Split) -> SplitSamples:
        """Every sample of a split, shard after shard. Raises ManifestError if there is none."""
        shards = tuple(shard for shard in self.shards if shard.split == split)
        if not shards:
            have = ", ".join(s for s in SPLITS if any(shard.split == s for shard in self.shards))
            raise ManifestError(f"the dataset has no {split!r} split (it has {have})", "there is nothing to read",
                                "prepare it with --split, for example --split 0.8/0.1/0.1")
        return SplitSamples(split, self.classes, shards)


@dataclass(frozen=True)
class SplitSamples:
    """The samples of one split. Sample i is the i-th over all its shards in manifest order."""

    split: Split
    classes: tuple[str, ...]
    shards: tuple[Shard, ...]

    def __len__(self) -> int:
        return int(self.starts[-1])

    @cached_property
    def shard_sizes(self) -> tuple[int, ...]:
        """Samples of each shard."""
        return tuple(shard.num_samples for shard in self.shards)

    @cached_property
    def starts(self) -> NDArray[np.int64]:
        """First sample of each shard, and the number of samples at the end."""
        return np.concatenate([[0], np.cumsum(self.shard_sizes)]).astype(np.int64)

    @cached_property
    def labels(self) -> NDArray[np.int64]:
        return np.concatenate([np.asarray(shard.index.label, dtype=np.int64) for shard in self.shards])

    @cached_property
    def keys(self) -> tuple[str, ...]:
        return tuple(key for shard in self.shards for key in shard.index.key)

    @cached_property
    def versions(self) -> NDArray[np.int64]:
        """The version of the dataset that each sample came with."""
        return np.repeat([shard.version for shard in self.shards], self.shard_sizes)

    @cached_property
    def groups(self) -> tuple[str, ...]:
        return tuple(group for shard in self.shards for group in shard.index.group)

    def locate(self, sample: int) -> tuple[int, int]:
        """(shard number in this split, position in the shard) of a sample."""
        shard = int(np.searchsorted(self.starts, sample, side="right")) - 1
        return shard, sample - int(self.starts[shard])


class DatasetRecord(_Part):
    """What a run remembers of its dataset, which may be moved or lost."""

    classes: tuple[str, ...]
    dataset_sha256: str

    def to_bytes(self) -> bytes:
        """The sealed document."""
        return seal(RECORD_FORMAT, self.model_dump(mode="json"), indent=1)


def read_record(path: Path) -> DatasetRecord:
    """Read a run's record of its dataset. Raises CheckpointError."""
    try:
        document = open_sealed(path.read_bytes(), RECORD_FORMAT)
        return DatasetRecord.model_validate({name: document[name] for name in DatasetRecord.model_fields})
    except (OSError, SealError, KeyError, ValidationError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error).splitlines()[0]
        raise CheckpointError(f"{path}, the run's record of its dataset, can not be read: {reason}",
                              "its classes are not known", "restore it from a backup, or train again into another "
                              "--run folder") from error


def load_manifest(folder: Path) -> Manifest:
    """Read and check DIR/dataset.json. Raises ManifestError."""
    path = folder / FILE_NAME
    again = "run `distrib prepare` (or `distrib adopt`) again"
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise ManifestError(f"{path} does not exist", "there is no dataset to read",
                            "name the folder that `distrib prepare` or `distrib adopt` wrote") from None
    except OSError as error:
        raise ManifestError(f"{path} can not be read: {error.strerror}", "there is no dataset to read",
                            "check the path and its permissions") from error
    try:
        document = open_sealed(raw, FORMAT)
        document.pop("format")
        return Manifest.model_validate(document)
    except SealError as error:
        raise ManifestError(f"{path} is damaged: {error}", "its labels can not be trusted", again) from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ManifestError(f"{path} is not a valid manifest: {place} {first['msg']}", "it can not be used",
                            again) from error


def class_counts(samples: Sequence[int] | NDArray[np.int64], num_classes: int) -> NDArray[np.int64]:
    """Samples of each class, shape [num_classes]."""
    return np.bincount(np.asarray(samples, dtype=np.int64), minlength=num_classes).astype(np.int64)
