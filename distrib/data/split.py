"""Which group goes into which split: stratified by class, groups never torn, a pure function of its arguments.

Groups are dealt out one by one, those with the rarest class first and large ones before small ones, each to
the split that lags furthest behind its share of the classes in that group. So every class and every size of
group is spread in the proportions asked for, and the many small groups at the end even out what is left.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from distrib.data.manifest import SPLITS, Split
from distrib.errors import ConfigError, DataError

Part = TypeVar("Part", bound=str)
"""The name of a split, or of a fold."""

_NAMES: dict[str, Split] = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val",
    "test": "test", "testing": "test",
}


def split_named(name: str) -> Split | None:
    """The split that people call ``name`` (upper or lower case; valid, validation, training, testing too)."""
    return _NAMES.get(name.strip().lower())


def parse_fractions(text: str) -> dict[Split, float]:
    """``0.8/0.1/0.1`` or ``80/10/10`` as train/val/test; two parts are train/val. Raises ConfigError."""
    remedy = "write train/val/test, for example --split 0.8/0.1/0.1"
    try:
        parts = [float(part) for part in text.split("/")]
    except ValueError:
        raise ConfigError(f"--split {text!r} is not numbers between slashes", "nothing was written", remedy) from None
    if len(parts) not in (2, 3) or not all(0 <= part < float("inf") for part in parts):
        raise ConfigError(f"--split {text!r} is not two or three parts of 0 or more", "nothing was written", remedy)
    total = sum(parts)
    if not any(abs(total - whole) < 1e-6 * whole for whole in (1, 100)):
        raise ConfigError(f"--split {text!r} adds up to {total:g}, not to 1", "nothing was written", remedy)
    if parts[0] == 0:
        raise ConfigError(f"--split {text!r} leaves nothing to train on", "nothing was written", remedy)
    return {split: part / total for split, part in zip(SPLITS, parts, strict=False) if part > 0}


def keyed_digest(seed: int, purpose: str, name: str) -> bytes:
    """32 bytes that stand for a name in a random order; the same on every machine, always."""
    return hashlib.sha256(f"{seed}\0{purpose}\0{name}".encode(errors="surrogateescape")).digest()


def split_groups(groups: Sequence[str], labels: Sequence[int], classes: Sequence[str],
                 fractions: Mapping[Part, float], seed: int,
                 before: Mapping[Part, NDArray[np.int64]] | None = None) -> dict[str, Part]:
    """The split of every group, given each sample's group and label; the order of the samples has no influence.

    ``before``: samples of each class that splits have already, [num_classes] each. Raises DataError if a class that
    none has yet has fewer groups than there are splits: a split without a class can not measure it.
    """
    splits = tuple(fractions)
    shares = np.array([fractions[split] for split in splits])
    counts = _counts_by_group(groups, labels, len(classes))
    totals = np.sum(list(counts.values()), axis=0, initial=0)
    groups_left = np.sum([count > 0 for count in counts.values()], axis=0, initial=0)
    have = np.array([(before or {}).get(split, np.zeros(len(classes))) for split in splits], dtype=np.float64)
    seen = have.sum(axis=0)
    fresh = seen == 0
    _refuse_rare({name: int(n) for name, n in zip(np.array(classes, dtype=object)[fresh], groups_left[fresh],
                                                  strict=True)}, splits)

    def rank(group: str) -> tuple[int, int, bytes]:
        count = counts[group]
        return int(totals[count > 0].min()), -int(count.sum()), keyed_digest(seed, "split", group)

    result: dict[str, Part] = {}
    for group in sorted(counts, key=rank):
        count = counts[group]
        seen += count
        lag = ((shares[:, None] * seen - have) * (count / np.maximum(totals, 1))).sum(axis=1)
        allowed = np.ones(len(splits), dtype=bool)
        for label in sorted(np.flatnonzero(count), key=lambda c: int(totals[c])):
            lacking = have[:, label] == 0
            # The last groups of a class belong to the splits that have none of it yet.
            if lacking.any() and groups_left[label] <= lacking.sum() and (allowed & lacking).any():
                allowed &= lacking
        chosen = _furthest_behind(np.where(allowed, lag, -np.inf), shares, keyed_digest(seed, "tie", group))
        result[group] = splits[chosen]
        have[chosen] += count
        groups_left -= count > 0
    for number, name in enumerate(classes):
        missing = [split for split, row in zip(splits, have, strict=True) if not row[number]]
        if missing and fresh[number]:
            raise _too_rare(f"class {name!r} found no place in {' and '.join(missing)}, so intertwined are the groups")
    return result


def missing_classes(labels_by_split: Mapping[Split, Sequence[int]], classes: Sequence[str]) -> list[str]:
    """One sentence for each split that lacks classes, for splits that somebody else made."""
    sentences = []
    for split, labels in labels_by_split.items():
        present = set(labels)
        lacking = [name for label, name in enumerate(classes) if label not in present]
        if lacking:
            sentences.append(f"the {split} split has no sample of {', '.join(lacking[:10])}"
                             + (f" and {len(lacking) - 10} more classes" if len(lacking) > 10 else ""))
    return sentences


def torn_groups(groups: Sequence[str], splits: Sequence[Split]) -> list[str]:
    """Groups with samples in more than one split, in order of their names."""
    places: dict[str, set[Split]] = defaultdict(set)
    for group, split in zip(groups, splits, strict=True):
        places[group].add(split)
    return sorted(group for group, found in places.items() if len(found) > 1)


def _counts_by_group(groups: Sequence[str], labels: Sequence[int], num_classes: int) -> dict[str, NDArray[np.int64]]:
    names, numbers = np.unique(np.asarray(groups, dtype=object), return_inverse=True)
    table = np.zeros((len(names), num_classes), dtype=np.int64)
    np.add.at(table, (numbers, np.asarray(labels, dtype=np.int64)), 1)
    return dict(zip(names.tolist(), table, strict=True))


def _furthest_behind(lag: NDArray[np.float64], shares: NDArray[np.float64], tie: bytes) -> int:
    """The largest lag; among equals (but for rounding) a draw by share."""
    best = np.flatnonzero(lag >= lag.max() - 1e-12)
    if len(best) == 1:
        return int(best[0])
    drawn = int.from_bytes(tie[:8], "big") / 2**64 * shares[best].sum()
    return int(best[min(int(np.searchsorted(np.cumsum(shares[best]), drawn, side="right")), len(best) - 1)])


def _refuse_rare(num_groups: Mapping[str, int], splits: tuple[str, ...]) -> None:
    rare = [f"{name!r} ({n})" for name, n in num_groups.items() if n < len(splits)]
    if rare:
        more = f" and {len(rare) - 10} more" if len(rare) > 10 else ""
        names = ", ".join(rare[:10]) + more
        raise _too_rare(f"too few groups (or single images) for {len(splits)} splits in class {names}")


def _too_rare(fact: str) -> DataError:
    return DataError(fact, "a split that lacks a class can not measure it, so nothing was written",
                     "add images of it, leave the class out, or ask for fewer splits, such as --split 0.8/0.2")
