"""Why a rank is likely slow, in words, from nothing but what the ranks and their nodes told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from distrib.train.readings import NodeReading, RankReading
from distrib.train.slow import Standing

_PART = 0.5  # of what a rank takes longer, that a cause measured in seconds must account for
_THROTTLED, _SLOWER_CLOCK, _STEAL_PERCENT, _SWAP_MB_PER_S, _OTHERS_CORES, _FULL_PERCENT = 0.1, 0.85, 5.0, 1.0, 0.25, 90


@dataclass(frozen=True)
class Evidence:
    """One rank's, over the recent looks; seconds are of a lane and step."""

    data_s: float
    """Waiting for data."""
    reading: RankReading
    node: NodeReading
    others_cores: float
    """Processors of its node that something else than ranks of this run kept busy."""


def likely_causes(rank: int, standing: Standing, evidence: Sequence[Evidence]) -> dict[str, str]:
    """Kind of cause to words, for a slow rank; empty if nothing that was told explains it."""
    mine = evidence[rank]
    others = [other for number, other in enumerate(evidence) if number != rank]
    excess_s = standing.work_s * (1 - 1 / standing.score)

    def explains(own: float, of_others: Sequence[float]) -> bool:
        # Against its own past, what all have in common may be the cause as well.
        usual = median(of_others) if of_others and standing.is_against_others else 0.0
        return own - usual >= _PART * excess_s

    causes = {}
    if explains(mine.data_s, [other.data_s for other in others]):
        causes["data"] = f"it waits for data {_part(mine.data_s, standing)} of that time"
    node, busy = mine.node, ""
    if mine.others_cores >= _OTHERS_CORES:
        busy = f"other processes keep {mine.others_cores:.1f} of its node's {node.cores:.0f} processors busy"
    if explains(mine.reading.waited_s, [other.reading.waited_s for other in others]):
        waits = f"it waits for a processor {_part(mine.reading.waited_s, standing)} of that time"
        causes["processor"] = f"{waits}, {busy}" if busy else waits
    elif mine.reading.waited_s != mine.reading.waited_s and busy and node.cpu_percent >= _FULL_PERCENT:
        causes["processor"] = busy
    if mine.reading.throttled >= _THROTTLED:
        causes["limit"] = f"the CPU limit of its cgroup stops it in {mine.reading.throttled:.0%} of periods"
    if node.steal_percent >= _STEAL_PERCENT:
        causes["steal"] = f"the hypervisor gives {node.steal_percent:.0f}% of its node's processor time to others"
    if node.swap_mb_per_s >= _SWAP_MB_PER_S:
        causes["swap"] = (f"its node swaps {node.swap_mb_per_s:.0f} MB/s, with {node.memory_available_gb:.1f} GB of "
                          "memory available")
    clocks = [other.reading.ghz for other in others if other.reading.ghz > 0]
    if clocks and mine.reading.ghz <= _SLOWER_CLOCK * median(clocks):
        causes["clock"] = f"its processor runs at {mine.reading.ghz:.1f} GHz, the others' at {median(clocks):.1f}"
    return causes


def _part(seconds: float, standing: Standing) -> str:
    return f"{min(seconds / standing.work_s, 1):.0%}"
