"""What the user sees of a dataset: progress while it is read, and tables about it. All on stderr."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Sequence
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Table

from distrib.data.manifest import SPLITS, Manifest
from distrib.data.split import torn_groups
from distrib.errors import counted, printable

_LOG_EVERY_S = 10.0


class Progress:
    """A bar on a terminal, a line now and then elsewhere."""

    def __init__(self, what: str, total: int) -> None:
        self._what, self._total, self._done = what, total, 0
        self._said_s = time.monotonic()
        self._bar: Bar | None = None
        if sys.stderr.isatty():
            columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
            self._bar = Bar(*columns, console=Console(stderr=True), transient=True)
            self._task = self._bar.add_task(escape(what), total=total)

    def __enter__(self) -> Progress:
        if self._bar:
            self._bar.start()
        return self

    def advance(self, count: int) -> None:
        self._done += count
        if self._bar:
            self._bar.advance(self._task, count)
        elif time.monotonic() - self._said_s > _LOG_EVERY_S:
            self._said_s = time.monotonic()
            say(f"{self._what}: {self._done} of {self._total}")

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        if self._bar:
            self._bar.stop()


def say(line: str) -> None:
    """One line on stderr; control characters in it are escaped."""
    print(printable(line), file=sys.stderr, flush=True)


def say_all(title: str, items: Sequence[tuple[str, str]]) -> None:
    """Every (name, reason), a line each."""
    say(f"{title} ({len(items)}):")
    for name, reason in items:
        say(f"  {name}: {reason}")


def dataset_report(manifest: Manifest) -> dict[str, Any]:
    """Classes by split, groups, bytes, what was left out and what stands twice; JSON-able."""
    splits: dict[str, Any] = {}
    all_groups, all_splits = [], []
    for split in SPLITS:
        shards = [shard for shard in manifest.shards if shard.split == split]
        if not shards:
            continue
        labels = Counter(label for shard in shards for label in shard.index.label)
        groups = [group for shard in shards for group in shard.index.group]
        all_groups += groups
        all_splits += [split] * len(groups)
        splits[split] = {
            "samples": sum(shard.num_samples for shard in shards),
            "groups": len(set(groups)),
            "shards": len(shards),
            "bytes": sum(shard.bytes for shard in shards),
            "classes": {name: labels[number] for number, name in enumerate(manifest.classes)},
        }
    return {
        "sha256": manifest.sha256,
        "classes": list(manifest.classes),
        "samples": sum(split["samples"] for split in splits.values()),
        "bytes": sum(split["bytes"] for split in splits.values()),
        "splits": splits,
        "torn_groups": torn_groups(all_groups, all_splits),
        "excluded": [item.model_dump() for item in manifest.excluded],
        "duplicates": [item.model_dump(mode="json") for item in manifest.duplicates],
        "preparation": manifest.preparation,
    }


def show_report(title: str, report: dict[str, Any]) -> None:
    """The report as a table on stderr."""
    say(title)
    table = Table()
    table.add_column("class")
    for split in report["splits"]:
        table.add_column(split, justify="right")
    for name in report["classes"]:
        table.add_row(escape(name), *(str(split["classes"][name]) for split in report["splits"].values()))
    table.add_section()
    for what in ("samples", "groups", "shards"):
        table.add_row(what, *(str(split[what]) for split in report["splits"].values()), style="bold")
    table.add_row("MB", *(f"{split['bytes'] / 1e6:.1f}" for split in report["splits"].values()), style="bold")
    Console(stderr=True).print(table)
    if report["torn_groups"]:
        say(f"{counted(len(report['torn_groups']), 'group is', 'groups are')} in more than one split, "
            f"such as {report['torn_groups'][0]!r}")
    if report["excluded"]:
        say(f"{counted(len(report['excluded']), 'image was', 'images were')} left out; the manifest says which and why")
    say_duplicates(report["duplicates"])


def say_duplicates(duplicates: Sequence[dict[str, Any]]) -> None:
    """What stands in two splits, the first few of it."""
    for kind, what in (("exact", "the same as"), ("near", "nearly the same as")):
        found = [item for item in duplicates if item["kind"] == kind]
        if not found:
            continue
        say(f"{counted(len(found), 'image is', 'images are')} {what} one in another split; "
            "scores on that split may be too good:")
        for item in found[:10]:
            say(f"  {item['second']} ({item['splits'][1]}) is {what} {item['first']} ({item['splits'][0]})")
        if len(found) > 10:
            say(f"  and {len(found) - 10} more, all in the manifest")
