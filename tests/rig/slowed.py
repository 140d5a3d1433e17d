"""`distrib`, but each step takes a moment longer, so that there is time to do something to the run, until the file
that QUICK_WHEN names is there.

    python -m tests.rig.slowed train ...
"""

from __future__ import annotations

import os
import sys
import time

from distrib.cli import main
from distrib.train import paces
from distrib.train.each_step import EachStep
from distrib.train.pace import Period
from distrib.train.reduction import Stop

STEP_S = 0.25


class Slowed(EachStep):
    def run(self, step: int, stop: Stop) -> Period:
        if not os.path.exists(os.environ["QUICK_WHEN"]):
            time.sleep(STEP_S)
        return super().run(step, stop)


def slowed_main() -> int:
    vars(paces)["EachStep"] = Slowed
    return main()


if __name__ == "__main__":
    sys.exit(slowed_main())
