"""Are two runs one model, bit for bit, and if not, since when? Pure, but for the comparison of tensors it is given."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from distrib.errors import CheckpointError
from distrib.verify.differences import environment_at, recorded_differences
from distrib.verify.record import Record, State

Parts = Mapping[str, bool]
"""Parts of a state that could be compared, and whether they are the same."""
CompareStates = Callable[[int], "Parts | None"]
"""A step after which both runs have weights, to the parts' sameness; None if one of the two is damaged."""


def judge(a: Record, b: Record, compare: CompareStates) -> dict[str, Any]:
    """What `verify --json` prints, but for the words. Raises CheckpointError if nothing can be said.

    ``compare`` is asked of the newest common state first, and of the older ones only if that differs.
    """
    losses = sorted(a.losses.keys() & b.losses.keys())
    by_loss = first_different_loss(a.losses, b.losses)
    common = sorted(a.states & b.states)
    newest, parts = _newest(common, compare)
    by_state, last_same = None, newest
    if newest is not None and not all(parts.values()):
        by_state, parts, last_same = _earliest(common, newest, parts, compare)
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
    if first is None:
        evidence = "weights" if newest is not None else "losses"
    else:
        evidence = "loss" if first == by_loss else "checkpoint"
    return {
        "same": first is None,
        "a": _described(a, first or last),
        "b": _described(b, first or last),
        "compared_step": last,
        "weights_step": newest,
        "compared_parts": list(parts),
        "losses_compared": len(losses),
        "first_different_step": first,
        "evidence": evidence,
        "first_different_loss": {"step": by_loss, "a": _finite(a.losses[by_loss]), "b": _finite(b.losses[by_loss])}
        if by_loss is not None else None,
        "first_different_checkpoint": {"step": by_state, "parts": [name for name, same in parts.items() if not same]}
        if by_state is not None else None,
        "last_same_weights_step": last_same,
        "differences": differences,
        "explained": None if first is None else any(one["from_step"] <= first for one in differences),
    }


def first_different_loss(a: Mapping[int, float], b: Mapping[int, float]) -> int | None:
    """The first step that both have whose losses are not the same number to the last bit."""
    return next((step for step in sorted(a.keys() & b.keys()) if repr(a[step]) != repr(b[step])), None)


def same_parts(a: State, b: State) -> dict[str, bool]:
    """Which of the digests that both states have are the same; two states without a moving average have none."""
    return {part: a[part] == b[part] for part in ("model", "optimizer", "ema")
            if part in a and part in b and (a[part], b[part]) != (None, None)}


def _newest(common: Sequence[int], compare: CompareStates) -> tuple[int | None, Parts]:
    """The newest of the steps that can be compared; None if none can."""
    for step in reversed(common):
        parts = compare(step)
        if parts is not None:
            return step, parts
    return None, {}


def _earliest(common: Sequence[int], newest: int, parts: Parts,
              compare: CompareStates) -> tuple[int, Parts, int | None]:
    """(the first step whose states differ, their parts, the last one before it whose states do not)."""
    last_same = None
    for step in common[:common.index(newest)]:
        found = compare(step)
        if found is None:
            continue
        if not all(found.values()):
            return step, found, last_same
        last_same = step
    return newest, parts, last_same


def _described(record: Record, step: int) -> dict[str, Any]:
    """``host`` is rank 0's at that step."""
    environment = environment_at(record.starts, step) or {}
    return {"run": record.name, "last_step": record.last_step, "host": environment.get("host"),
            "starts": [start["step"] for start in record.starts]}


def _finite(loss: float) -> float | None:
    return loss if math.isfinite(loss) else None
