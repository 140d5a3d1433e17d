"""Who is there when an elastic run begins: rank 0 waits for the others' addresses, and decides for all who came."""

from __future__ import annotations

import datetime
import json
import time
from collections.abc import Callable

from torch._C._distributed_c10d import Store

ADDRESS = "members/{}"
"""Key of a rank's address in the ranks' common store."""
NOTICE_S = 15.0
"""After this rank 0 says whom it still waits for."""
_POLL_S = 0.02


def who_came(me: int, size: int, patience_s: float, store: Store, tell: Callable[[str], None]) -> set[int]:
    """The ranks whose addresses were in the store within ``patience_s``. Collective. Raises RuntimeError if rank 0 is
    lost."""
    if me:
        store.wait(["members/came"], datetime.timedelta(seconds=2 * patience_s))
        return set(json.loads(store.get("members/came")))
    missing, begun, told = list(range(size)), time.monotonic(), False
    while missing and time.monotonic() < begun + patience_s:
        if _is_there(store, missing[0]):
            del missing[0]
            continue
        if not told and time.monotonic() > begun + NOTICE_S:
            absent = ", ".join(str(rank) for rank in missing if not _is_there(store, rank))
            tell(f"waiting for rank {absent}, which did not come yet; after {patience_s:g} s (comm.timeout_s) the "
                 "others begin without")
            told = True
        time.sleep(_POLL_S)
    came = [rank for rank in range(size) if rank not in missing or _is_there(store, rank)]
    store.set("members/came", json.dumps(came))
    return set(came)


def _is_there(store: Store, rank: int) -> bool:
    return store.check([ADDRESS.format(rank)])
