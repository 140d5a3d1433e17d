"""One promotion: a sealed document of what became current, when, by whom, on what data and how it compared."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from distrib.documents import Section, Sha256
from distrib.durable import SealError, open_sealed, seal
from distrib.errors import BundleError

FORMAT = "distrib-promotion/1"

Number = Annotated[int, Field(ge=1)]


class Compared(Section):
    """One metric of the candidate and of the current bundle, on the same samples."""

    candidate: float | None
    current: float | None
    """None where there was no current bundle, or the metric is not defined."""
    difference: float | None
    """Candidate minus current."""
    low: float | None
    high: float | None
    """95% interval of the difference; with no current bundle, of the candidate's value."""


class Judgement(Section):
    """How the candidate did on the frozen test split."""

    dataset_sha256: Sha256
    split: str
    test_sha256: Sha256
    """Digest of the split's samples and labels: `distrib.data.frozen.split_digest`."""
    num_samples: Annotated[int, Field(ge=1)]
    num_groups: Annotated[int, Field(ge=1)]
    resamples: Annotated[int, Field(ge=1)]
    metric: str
    """Decided."""
    margin: Annotated[float, Field(ge=0)]
    metrics: dict[str, Compared]
    refused: str | None
    """Why it would have been refused, where it was forced."""


class Entry(Section):
    number: Number
    action: Literal["promote", "rollback"]
    when: str
    """UTC, ISO 8601."""
    who: str
    reason: str
    bundle_sha256: Sha256
    weights_sha256: Sha256
    trained_on_sha256: Sha256
    """Seal of the dataset that the model was trained on."""
    parent: Number | None
    """The entry that was current before."""
    restores: Number | None = None
    """Of a rollback: the promotion whose bundle is current again."""
    judgement: Judgement | None
    """None of a rollback."""

    @property
    def origin(self) -> int:
        """The promotion that this entry's bundle came with."""
        return self.number if self.restores is None else self.restores

    def to_bytes(self) -> bytes:
        """The sealed document."""
        return seal(FORMAT, self.model_dump(mode="json"), indent=1)


def read_entry(path: Path) -> Entry:
    """Raises BundleError."""
    try:
        document = open_sealed(path.read_bytes(), FORMAT)
        return Entry.model_validate({name: document[name] for name in Entry.model_fields})
    except (OSError, SealError, KeyError, ValidationError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error).splitlines()[0]
        raise BundleError(f"the registry's entry {path} can not be read: {reason}", "the registry was left as it is",
                          "restore it from a backup") from error
