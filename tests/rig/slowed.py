"""`distrib`, but each step takes a moment longer, so that there is time to do something to the run.

    python -m tests.rig.slowed train ...
"""

from __future__ import annotations

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
        time.sleep(STEP_S)
        return super().run(step, stop)


if __name__ == "__main__":
    vars(paces)["EachStep"] = Slowed
    sys.exit(main())
