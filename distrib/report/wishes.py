"""What `distrib report` is asked for, checked before anything heavy is imported."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from distrib.errors import ConfigError

MOST_TARGETS = 5
MOST_ERRORS = 24
_NOTHING = "no report was made"


@dataclass(frozen=True)
class Wishes:
    targets: tuple[Path, ...]
    out: Path
    data: Path | None
    split: str
    subgroups: tuple[str, ...]
    """FIELD or FIELD=40,60."""
    errors: int
    """Worst errors on the page, shared out between the targets."""
    bootstrap: int | None
    """Resamples; None: the first experiment's."""


def check_wishes(targets: Sequence[Path], out: Path, data: Path | None, split: str, subgroups: Sequence[str],
                 errors: int, bootstrap: int | None, world_size: int) -> Wishes:
    """Raises ConfigError for what can not be fulfilled."""
    if split not in ("val", "test"):
        raise ConfigError(f"--split {split!r} is no held-out split", _NOTHING, "choose val or test")
    if len(targets) > MOST_TARGETS:
        raise ConfigError(f"{len(targets)} runs are more than stand side by side", _NOTHING,
                          f"name at most {MOST_TARGETS}")
    if len({target.resolve() for target in targets}) < len(targets):
        raise ConfigError("a run is named twice", _NOTHING, "name each once")
    if not 0 <= errors <= MOST_ERRORS:
        raise ConfigError(f"--errors {errors} is not between 0 and {MOST_ERRORS}", _NOTHING,
                          "give 0 to leave pictures out")
    if bootstrap is not None and not 0 <= bootstrap <= 100_000:
        raise ConfigError(f"--bootstrap {bootstrap} is not between 0 and 100000", _NOTHING,
                          "give 0 to leave intervals out")
    if world_size > 1:
        raise ConfigError(f"a report is made by one process, and this is one of {world_size} ranks", _NOTHING,
                          "start it without a launcher")
    if len(set(subgroups)) < len(subgroups):
        raise ConfigError("a --subgroup is given twice", _NOTHING, "leave one out")
    return Wishes(tuple(targets), out, data, split, tuple(subgroups), errors, bootstrap)
