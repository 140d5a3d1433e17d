"""What must stay together and what must not be there: copies, contradicting labels, torn groups."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Container, Sequence

from distrib.data.duplicates import same_pixels
from distrib.data.manifest import SPLITS, Split
from distrib.data.reading import ReadImage
from distrib.data.report import say, say_all
from distrib.data.samples import readable
from distrib.data.split import missing_classes, torn_groups
from distrib.errors import DataError, counted


def without_conflicts(reads: list[ReadImage], refuse: bool) -> tuple[list[ReadImage], list[tuple[str, str]]]:
    """(the other images; (path, reason) of those that stand there twice with two labels), or DataError to refuse."""
    conflicting: list[tuple[str, str]] = []
    dropped: set[int] = set()
    for places in same_pixels([read.print for read in reads]):
        if len({reads[i].sample.label for i in places}) > 1:
            dropped.update(places)
            for i in places:
                sample = reads[i].sample
                other = next(reads[j].sample for j in places if reads[j].sample.label != sample.label)
                reason = f"labelled {sample.label!r}, and the same image as {readable(other.path)}: {other.label!r}"
                conflicting.append((readable(sample.path), reason))
    if conflicting:
        say_all("images that have two labels", conflicting)
        if refuse:
            raise DataError(f"{counted(len(conflicting), 'image has', 'images have')} two labels "
                            f"(listed above; the first: {conflicting[0][0]})",
                            "nothing was written", "correct the labels, or leave these images out with --on-bad skip")
    return [read for i, read in enumerate(reads) if i not in dropped], conflicting


def merge_copies(reads: Sequence[ReadImage], groups: list[str],
                 places: Container[str] = ()) -> tuple[list[str], int]:
    """(groups such that equal images share one, number of groups that went into another).

    Groups in ``places`` have a split already: others go into them, and they into none.
    """
    parent = {group: group for group in groups}

    def root(group: str) -> str:
        while parent[group] != group:
            parent[group] = parent[parent[group]]
            group = parent[group]
        return group

    for equal in same_pixels([read.print for read in reads]):
        roots = sorted({root(groups[i]) for i in equal}, key=lambda group: (group not in places, group))
        for other in roots[1:]:
            if other not in places:
                parent[other] = roots[0]
    num_merged = sum(root(group) != group for group in parent)
    if num_merged:
        say(f"note: {counted(num_merged, 'group shares', 'groups share')} an image with another group, byte for byte "
            "or pixel for pixel; such groups stay together in one split")
    return [root(group) for group in groups], num_merged


def check_given_splits(groups: Sequence[str], splits: Sequence[Split], labels: Sequence[int],
                        classes: Sequence[str]) -> None:
    """Of splits that somebody else made. Raises DataError for torn groups; warns of missing classes on stderr."""
    torn = torn_groups(groups, splits)
    if torn:
        raise DataError(f"{counted(len(torn), 'group is', 'groups are')} in more than one of the given splits, "
                        f"such as {', '.join(torn[:5])}",
                        "scores would be too good, so nothing was written",
                        "correct the split column, or let --split make the splits")
    by_split: dict[Split, list[int]] = defaultdict(list)
    for split, label in zip(splits, labels, strict=True):
        by_split[split].append(label)
    if "train" not in by_split:
        raise DataError("the given splits have no train split", "there is nothing to train on", "check the splits")
    for sentence in missing_classes(by_split, classes):
        say(f"warning: {sentence}; it can not measure them")
    for split in SPLITS:
        if split not in by_split:
            say(f"note: there is no {split} split")
