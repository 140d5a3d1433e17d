"""Who ends when some ranks are asked to: all of them, or those alone."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from distrib.comm.group import Group

ALL_ASKED_S = 2.0
"""A request to end the whole job reaches all its ranks within this."""


def all_end(group: Group, asked: Callable[[], int], *, by_hand: bool) -> tuple[bool, bool]:
    """Collective, when some rank was asked to end: (whether all do, whether this one does).

    All do if every rank was asked that the launcher started; those that joined ``by_hand`` go with them, since nobody
    asks those.
    """
    deadline = time.monotonic() + ALL_ASKED_S
    while not asked() and time.monotonic() < deadline:
        time.sleep(0.02)
    mine = bool(asked())
    rows = group.rows_of_all(np.array([float(mine), float(by_hand)]))
    launched = rows[rows[:, 1] == 0]
    every = bool((launched if len(launched) else rows)[:, 0].all())
    return every, mine or every
