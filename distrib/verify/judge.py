"""Are two runs one model, bit for bit, and if not, since when? Pure, but for the comparison of tensors, which is given."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from distrib.errors import CheckpointError
from distrib.verify.differences import environment_at, recorded_differences
from distrib.verify.record import Record, State

CompareStates = Callable[[int], "list[str] | None"]
"""A step after which both runs have weights, to the parts that differ there; None if one of the two is damaged."""


def judge(a: Record, b: Record, compare: CompareStates) -> dict[str, Any]:
    """What `verify --json` prints, but for the words. Raises CheckpointError if nothing can be said.

    ``compare`` is asked of the newest common state first, and of the older ones only if that differs.
    """
    losses = sorted(a.losses.keys() & b.losses.keys())
    by_loss = first_different_loss(a.losses, b.losses)
    common = a.states & b.states
    newest, parts, last_same = _newest(common, compare)
    by_state = None
    if parts:
        by_state, parts, last_same = _earliest(common, newest or 0, parts, compare)
    elif newest is not None and by_loss is not None and by_loss <= newest:
        raise CheckpointError(
            f"the records of {a.name} and {b.name} contradict each other: the losses of step {by_loss} differ, the "
            f"weights after step {newest} do not", "one of the records is wrong, so nothing is claimed",
            "compare both metrics.jsonl with a backup, or replay both runs")
    if newest is None and common and by_loss is None:
        raise CheckpointError(f"of every checkpoint that both {a.name} and {b.name} have, one is damaged",
                              "their weights can not be compared", "restore them from a backup, or train again")
    if newest is None and not losses:
        raise CheckpointError(f"{a.name} and {b.name} have no step in common: neither a loss nor a checkpoint",
                              "there is nothing to compare", "let both train further")
    found = [step for step in (by_loss, by_state) if step is not None]
    first = min(found) if found else None
    last = max((*losses, *([newest] if newest is not None else ())))
    differences = recorded_differences(a, b, last)
    return {
        "same": first is None,
        "a": _described(a, first or last),
        "b": _described(b, first or last),
        "compared_step": last,
        "weights_step": newest,
        "losses_compared": len(losses),
        "first_different_step": first,
        "evidence": ("weights" if newest is not None else "losses") if first is None
        else ("loss" if first == by_loss else "checkpoint"),
        "different_losses": [_finite(record.losses[by_loss]) for record in (a, b)] if by_loss is not None else None,
        "different_parts": parts or [],
        "last_same_weights_step": last_same,
        "differences": differences,
        "explained": None if first is None else any(one["from_step"] <= first for one in differences),
    }


def first_different_loss(a: Mapping[int, float], b: Mapping[int, float]) -> int | None:
    """The first step that both have whose losses are not the same number to the last bit."""
    return next((step for step in sorted(a.keys() & b.keys()) if repr(a[step]) != repr(b[step])), None)


def different_parts(a: State, b: State) -> list[str]:
    """Names of the digests that both states have and that differ."""
    return [part for part in ("model", "optimizer", "ema") if part in a and part in b and a[part] != b[part]]


def _newest(common: Iterable[int], compare: CompareStates) -> tuple[int | None, list[str], int | None]:
    """(the newest step that could be compared, what differs there, the same step if nothing does)."""
    for step in sorted(common, reverse=True):
        parts = compare(step)
        if parts is not None:
            return step, parts, step if not parts else None
    return None, [], None


def _earliest(common: Iterable[int], newest: int, parts: list[str],
              compare: CompareStates) -> tuple[int, list[str], int | None]:
    """(the first step whose states differ, what differs there, the last one before it whose states do not)."""
    last_same = None
    for step in sorted(step for step in common if step < newest):
        found = compare(step)
        if found:
            return step, found, last_same
        last_same = step if found is not None else last_same
    return newest, parts, last_same


def _described(record: Record, step: int) -> dict[str, Any]:
    """``host`` is rank 0's at that step."""
    environment = environment_at(record.starts, step) or {}
    return {"run": record.name, "last_step": record.last_step, "host": environment.get("host"),
            "starts": [start["step"] for start in record.starts]}


def _finite(loss: float) -> float | None:
    return loss if math.isfinite(loss) else None
