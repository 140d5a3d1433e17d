"""`distrib`, but one rank ends, as by kill -9, when it comes to a point that no signal from outside would hit.

    python -m tests.rig.early RANK POINT train ...
"""

from __future__ import annotations

import os
import sys
from typing import Any

from distrib.cli import main
from distrib.elastic.members import Members
from distrib.elastic.wire import Wire
from distrib.train import ledger, log, rank
from distrib.train.loop import Trainer

CODE = 9
POINTS: dict[str, tuple[Any, str, bool]] = {
    "before it tells where it is": (Members, "meet", False),
    "before it calls anyone": (Wire, "start", False),
    "after it called the first": (Wire, "open", True),
    "when all are connected": (Members, "_wait_for_connections", True),
    "before it records a step": (log.RunLog, "steps", False),
    "before it writes its ledger": (ledger.Ledger, "__call__", False),
    "in a validation": (Trainer, "_validation", False),
    "before it writes the result": (rank, "replace_file", False),
    "after it wrote the result": (rank, "replace_file", True),
}
"""Where, in words: (class or module, what of it, whether after it and not before)."""
LATER = {"before it records a step": 30, "before it writes its ledger": 100, "in a validation": 2}
"""How often it comes there first, if not once."""


def end_at(owner: Any, name: str, after: bool, times: int) -> None:
    method, left = getattr(owner, name), times

    def ending(*arguments: Any, **options: Any) -> Any:
        nonlocal left
        left -= 1
        if left and not after:
            return method(*arguments, **options)
        result = method(*arguments, **options) if after else None
        if not left:
            os._exit(CODE)
        return result

    setattr(owner, name, ending)


if __name__ == "__main__":
    number, point = sys.argv[1:3]
    del sys.argv[1:3]
    if os.environ["RANK"] == number:
        end_at(*POINTS[point], LATER.get(point, 1))
    sys.exit(main())
