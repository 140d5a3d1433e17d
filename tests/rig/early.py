"""`distrib`, but the rank in DIES_RANK ends when it comes to DIES_AT, a method of what makes members meet.

    DIES_RANK=2 DIES_AT=start python -m tests.rig.early train ...
"""

from __future__ import annotations

import os
import sys
from typing import Any

from distrib.cli import main
from distrib.elastic.members import Members
from distrib.elastic.wire import Wire

POINTS: dict[str, tuple[type, str, bool]] = {
    "before it tells where it is": (Members, "meet", False),
    "before it calls anyone": (Wire, "start", False),
    "after it called the first": (Wire, "open", True),
    "when all are connected": (Members, "_wait_for_connections", True),
}
"""Where, in words: (class, method, whether after it and not before)."""


def end_at(owner: type, name: str, after: bool) -> None:
    method = getattr(owner, name)

    def ending(*arguments: Any) -> Any:
        if after:
            method(*arguments)
        os._exit(9)

    setattr(owner, name, ending)


if __name__ == "__main__":
    if os.environ["RANK"] == os.environ["DIES_RANK"]:
        end_at(*POINTS[os.environ["DIES_AT"]])
    sys.exit(main())
