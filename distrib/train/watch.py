"""Looks at nodes and ranks while training: what they use, who is slow, and why.

A look follows a period that all ranks agree on: how many periods lie between looks is computed from what all told at
the last, never from a clock of one's own. Each rank gives one row of numbers to one small all-reduce.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray

from distrib.comm.group import Group
from distrib.config import WatchConfig
from distrib.train.cause import Evidence, likely_causes
from distrib.train.log import RunLog
from distrib.train.pace import Period
from distrib.train.places import Place, places_of
from distrib.train.readings import NodeMeter, NodeReading, RankMeter, RankReading
from distrib.train.slow import RECENT, Scores, Standing, periods_until_look

WARM_UP = 2
"""Periods of every start that no score counts: kernels are compiled, buffers made, the first step is done twice."""
_MOST_NOTES = 8
_RANK_FIELDS, _NODE_FIELDS = len(fields(RankReading)), len(fields(NodeReading))

Rows = NDArray[np.float64]
"""[R, N], a rank a row: seconds a period, work and data seconds a lane and step, its reading, its node's reading."""


def build_watch(config: WatchConfig, group: Group, num_lanes: int, log: RunLog | None) -> Watch | None:
    """Collective; None if nobody shall look. ``num_lanes`` are this rank's, ``log`` is rank 0's."""
    return Watch(config, group, num_lanes, log) if config.every_s > 0 else None


@dataclass
class _Interval:
    """What one rank did since the last look."""

    first_step: int = 0
    periods: int = 0
    total_s: float = 0.0
    attempts: int = 0
    """Lanes and steps computed, those that were done again too."""
    lane_steps: int = 0
    """Lanes and steps after the warm-up, and the seconds that they took:"""
    data_s: float = 0.0
    compute_s: float = 0.0


class Watch:
    """One rank's part of the looks."""

    def __init__(self, config: WatchConfig, group: Group, num_lanes: int, log: RunLog | None) -> None:
        self._every_s, self._group, self._num_lanes = config.every_s, group, num_lanes
        places = places_of(group)
        is_reader = places[group.rank].node == group.rank
        self._node = NodeMeter(group.world.master_addr if group.size > 1 else "") if is_reader else None
        self._rank = RankMeter()
        self._report = Report(config, places, log) if log is not None else None
        self._left, self._warm_up = WARM_UP, WARM_UP
        self._work_s: deque[list[float]] = deque(maxlen=RECENT)
        self._since = _Interval()

    def after(self, step: int, period: Period, total_s: float, *, last: bool) -> None:
        """After the period that began after ``step`` steps and took ``total_s``. Collective when a look is due: after
        so many periods, and after the ``last`` of the run."""
        since, lane_steps = self._since, self._num_lanes * len(period.steps)
        if not since.periods:
            since.first_step = step + 1
        since.periods += 1
        since.total_s += total_s
        since.attempts += lane_steps * (1 + period.repeats)
        if self._warm_up:
            self._warm_up -= 1
        else:
            since.lane_steps += lane_steps
            since.data_s += period.data_s
            since.compute_s += period.compute_s / (1 + period.repeats)
        if since.periods >= self._left or last:
            rows = self._group.rows_of_all(self._row())
            if not np.isnan(rows[:, 1]).any():
                self._work_s.append(rows[:, 1].tolist())
            if self._report is not None:
                self._report.take(since.first_step, step + len(period.steps), rows)
            self._left = periods_until_look(rows[:, 0].tolist(), self._every_s)
            self._since = _Interval()

    @property
    def work_s(self) -> list[float] | None:
        """Seconds that a lane's step takes each rank, the median over `RECENT` looks; None before. Equal on all."""
        if len(self._work_s) < RECENT:
            return None
        medians: list[float] = np.median(np.array(self._work_s), axis=0).tolist()
        return medians

    def _row(self) -> NDArray[np.float64]:
        since, mine = self._since, self._rank.read()
        mine = replace(mine, waited_s=mine.waited_s / since.attempts)
        node = self._node.read() if self._node is not None else NodeReading()
        work_s = data_s = math.nan
        if since.lane_steps:
            work_s, data_s = (since.data_s + since.compute_s) / since.lane_steps, since.data_s / since.lane_steps
        return np.array([since.total_s / since.periods, work_s, data_s, *astuple(mine), *astuple(node)])


class Report:
    """What rank 0 tells of looks: metrics, and a line when a rank becomes slow, for another cause, or much slower."""

    def __init__(self, config: WatchConfig, places: Sequence[Place], log: RunLog) -> None:
        self._places, self._log = places, log
        self._scores = Scores(config.slow_factor)
        self._looks: deque[Rows] = deque(maxlen=RECENT)
        self._told: dict[int, tuple[float, set[str]]] = {}

    def take(self, first_step: int, step: int, rows: Rows) -> None:
        """``rows`` of the steps from ``first_step`` to ``step``."""
        for rank, place in enumerate(self._places):
            if place.node == rank:
                reading = {**vars(_node(rows[rank])), "others_cores": self._others_cores(rank, rows)}
                self._log.node(step, place.host, {name: _round(value) for name, value in reading.items()})
        if np.isnan(rows[:, 1]).any():  # nothing but warm-up
            return
        self._looks.append(rows)
        standings = self._scores.take(first_step, rows[:, 1].tolist())
        self._log.event("ranks", step, work_s=_rounded(rows[:, 1].tolist()), data_s=_rounded(rows[:, 2].tolist()),
                        against_others=_rounded([standing.against_others for standing in standings]),
                        against_past=_rounded([standing.against_past for standing in standings]))
        self._tell(step, standings)

    def _tell(self, step: int, standings: Sequence[Standing]) -> None:
        notes = []
        evidence = self._evidence() if any(s.slow_since is not None for s in standings) else []
        for rank, standing in enumerate(standings):
            who = f"rank {rank} on {self._places[rank].host}"
            if standing.slow_since is None:
                if self._told.pop(rank, None) is not None:
                    self._log.event("slow_rank_ended", step, rank=rank, host=self._places[rank].host)
                    notes.append(f"{who} is no longer slow, at step {step}")
                continue
            causes = likely_causes(rank, standing, evidence)
            told, kinds = self._told.get(rank, (0.0, set()))
            if standing.score < 2 * told and causes.keys() <= kinds:
                continue
            self._told[rank] = max(told, standing.score), kinds | causes.keys()
            why = "; ".join(causes.values())
            work_s = float(f"{standing.work_s:.3g}")
            self._log.event("slow_rank", step, rank=rank, host=self._places[rank].host,
                            since_step=standing.slow_since, likely_cause=why or None,
                            work_s=work_s, against_others=_round(standing.against_others),
                            against_past=_round(standing.against_past))
            notes.append(f"slow: {who} takes {work_s:.3g} s for its own work on a lane and step, "
                         f"{_how_slow(standing, len(standings))}, since step {standing.slow_since}; "
                         + (f"likely cause: {why}" if why else "neither it nor its node shows a cause"))
        for note in notes[:_MOST_NOTES]:
            self._log.note(note)
        if len(notes) > _MOST_NOTES:
            self._log.note(f"and {len(notes) - _MOST_NOTES} more ranks like these: see metrics.jsonl")

    def _evidence(self) -> list[Evidence]:
        """Of every rank: the medians over the recent looks."""
        rows = np.median(np.stack(self._looks), axis=0)
        return [Evidence(float(rows[rank, 2]), RankReading(*rows[rank, 3:3 + _RANK_FIELDS].tolist()),
                         _node(rows[place.node]), self._others_cores(rank, rows))
                for rank, place in enumerate(self._places)]

    def _others_cores(self, rank: int, rows: Rows) -> float:
        """Processors of a rank's node that something else than ranks of this run kept busy."""
        node = self._places[rank].node
        reading = _node(rows[node])
        ours = sum(rows[other, 3] for other, place in enumerate(self._places) if place.node == node)
        return float(np.maximum(reading.cpu_percent / 100 * reading.cores - ours, 0.0))


def _node(row: NDArray[np.float64]) -> NodeReading:
    return NodeReading(*row[-_NODE_FIELDS:].tolist())


def _how_slow(standing: Standing, num_ranks: int) -> str:
    if standing.is_against_others:
        whose = "the other ranks' median" if num_ranks > 2 else "the other rank's"
        return f"{standing.score:.1f} times {whose}"
    return f"{standing.score:.1f} times its own best"


def _round(value: float | None) -> float | None:
    """Four digits, and null for what is not known."""
    return None if value is None or math.isnan(value) else float(f"{value:.4g}")


def _rounded(values: Sequence[float | None]) -> list[float | None]:
    return [_round(value) for value in values]
