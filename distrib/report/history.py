"""How a run was trained: its losses, validations, seconds and slow ranks, out of its own records."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

from distrib.json_lines import RunFile
from distrib.rundir import RunDir
from distrib.verify.differences import history

PARTS = ("data_s", "compute_s", "communication_s", "rest_s")
_CONSEQUENCE = "the report was not made"
_MOST = 1 << 60  # beyond: no count, and no measurement


@dataclass(frozen=True)
class SlowRank:
    """A rank that was named as slow, once for each cause and each doubling."""

    rank: int
    host: str
    since_step: int
    until_step: int | None
    """None: to the end."""
    score: float
    cause: str | None


@dataclass(frozen=True)
class Node:
    """A host over the whole run: means, and the least memory that was free."""

    host: str
    cpu_percent: float
    others_cores: float
    least_memory_gb: float
    sent_mb_per_s: float
    received_mb_per_s: float


@dataclass(frozen=True)
class Rank:
    """Medians over the looks, seconds a lane and step."""

    rank: int
    work_s: float
    data_s: float


@dataclass(frozen=True)
class Change:
    """Ranks of an elastic run that were lost, or that joined."""

    after_step: int
    ranks: int
    """From then on."""
    lost: tuple[str, ...]
    joined: tuple[str, ...]
    """"number N on HOST" each."""


@dataclass(frozen=True)
class History:
    steps: tuple[dict[str, float], ...]
    """step, loss, step_s, images_per_s and `PARTS`; not a number where it was not recorded."""
    validations: tuple[tuple[int, dict[str, Any]], ...]
    slow: tuple[SlowRank, ...]
    changes: tuple[Change, ...]
    nodes: tuple[Node, ...]
    ranks: tuple[Rank, ...]
    starts: tuple[Mapping[str, Any], ...]
    """Of environment.jsonl: those whose steps still count."""
    diverged_at: int | None


def read_history(run: RunDir) -> History:
    """Raises CheckpointError where a record is damaged; one that is missing tells nothing."""
    steps: dict[int, dict[str, float]] = {}
    validations: dict[int, dict[str, Any]] = {}
    slow: list[SlowRank] = []
    changes: list[Change] = []
    nodes: dict[str, list[dict[str, Any]]] = defaultdict(list)
    looks: list[dict[str, Any]] = []
    diverged_at = None
    file = RunFile(run.metrics, _CONSEQUENCE)
    for number, record in file.lines():
        event, step = record.get("event"), record.get("step")
        if type(step) is not int or not 0 <= step < _MOST:
            raise file.damaged(f"line {number} does not tell its step")
        if event == "step":
            steps[step] = {"step": float(step), **{name: _number(record.get(name)) for name in (
                "loss", "step_s", "images_per_s", *PARTS)}}
        elif event == "validation" and isinstance(record.get("validation"), dict):
            validations[step] = record["validation"]
        elif event == "node":
            nodes[str(record.get("host"))].append(record)
        elif event == "ranks":
            looks.append(record)
        elif event == "slow_rank":
            slow.append(_slow(file, number, record))
        elif event == "slow_rank_ended":
            slow = [_ended(one, step) if one.rank == record.get("rank") and one.until_step is None else one
                    for one in slow]
        elif event == "members":
            changes.append(Change(step, _count(record.get("ranks")), _who(record.get("lost")),
                                  _who(record.get("joined"))))
        elif event == "diverged":
            diverged_at = step
    environment = RunFile(run.environment, _CONSEQUENCE)
    starts = []
    for number, record in environment.lines():
        if type(record.get("step")) is not int:
            raise environment.damaged(f"line {number} does not tell its step")
        starts.append(record)
    return History(tuple(steps[step] for step in sorted(steps)), tuple(sorted(validations.items())), tuple(slow),
                   tuple(changes), tuple(_node(host, nodes[host]) for host in sorted(nodes)), tuple(_ranks(looks)),
                   tuple(history(starts)), diverged_at)


def in_buckets(steps: Sequence[Mapping[str, float]], names: Sequence[str],
               most: int) -> list[dict[str, float]]:
    """Means over neighbouring steps, at most so many; ``step`` is the last one of each."""
    size = max(1, math.ceil(len(steps) / most))
    return [{"step": part[-1]["step"], **{name: _mean([one[name] for one in part]) for name in names}}
            for part in (steps[begin:begin + size] for begin in range(0, len(steps), size))]


def time_split(steps: Sequence[Mapping[str, float]]) -> dict[str, tuple[float, float]]:
    """part -> (median seconds a step, share of all seconds); the first step, which compiles, is left out."""
    told = [one for one in steps[1:] or steps if math.isfinite(one["step_s"]) and all(map(
        math.isfinite, (one[name] for name in PARTS)))]
    total = sum(one[name] for one in told for name in PARTS)
    if not told or total <= 0:
        return {}
    return {name: (median(one[name] for one in told), sum(one[name] for one in told) / total) for name in PARTS}


def _slow(file: RunFile, number: int, record: Mapping[str, Any]) -> SlowRank:
    rank, since = record.get("rank"), record.get("since_step")
    if type(rank) is not int or type(since) is not int:
        raise file.damaged(f"line {number} names no slow rank")
    scores = [score for name in ("against_others", "against_past")
              if math.isfinite(score := _number(record.get(name)))]
    cause = record.get("likely_cause")
    return SlowRank(rank, str(record.get("host")), since, None, max(scores, default=math.nan),
                    None if cause is None else str(cause))


def _ended(one: SlowRank, step: int) -> SlowRank:
    return SlowRank(one.rank, one.host, one.since_step, step, one.score, one.cause)


def _node(host: str, records: Sequence[Mapping[str, Any]]) -> Node:
    def values(name: str) -> list[float]:
        return [_number(record.get(name)) for record in records]

    free = [value for value in values("memory_available_gb") if math.isfinite(value)]
    return Node(host, _mean(values("cpu_percent")), _mean(values("others_cores")), min(free, default=math.nan),
                _mean(values("sent_mb_per_s")), _mean(values("received_mb_per_s")))


def _ranks(looks: Sequence[Mapping[str, Any]]) -> list[Rank]:
    by_rank: dict[int, list[tuple[float, float]]] = defaultdict(list)
    for look in looks:
        work, data = look.get("work_s"), look.get("data_s")
        if isinstance(work, list) and isinstance(data, list):
            for rank, pair in enumerate(zip(work, data, strict=False)):
                by_rank[rank].append((_number(pair[0]), _number(pair[1])))
    return [Rank(rank, *(median(column) for column in zip(*pairs, strict=True)))
            for rank, pairs in sorted(by_rank.items())]


def _who(value: Any) -> tuple[str, ...]:
    members = value if isinstance(value, list) else []
    return tuple(f"number {one.get('number')} on {one.get('host') or 'an unknown host'}"
                 for one in members if isinstance(one, dict))


def _count(value: Any) -> int:
    return value if type(value) is int and 0 <= value < _MOST else 0


def _number(value: Any) -> float:
    """Not a number where it is none, or none that can be drawn."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not -_MOST < value < _MOST:
        return math.nan
    return float(value)


def _mean(values: Sequence[float]) -> float:
    finite = [value for value in values if math.isfinite(value)]
    return fmean(finite) if finite else math.nan
