"""What a rank holds while it trains: the right to write into the run's folder, and the signals that ask it to end."""

from __future__ import annotations

import contextlib
import shutil
import signal
from collections.abc import Callable, Iterator
from types import FrameType

from distrib.elastic.lease import Lease
from distrib.errors import storage_errors
from distrib.rundir import RunDir
from distrib.signals import stops_answered_by

Tell = Callable[[str], None]


@contextlib.contextmanager
def held(lease: Lease, run: RunDir, tell: Tell) -> Iterator[None]:
    """The run's lease, while rank 0 trains: two trainings into one folder would mix.

    A folder that was made for a run which then did not begin is removed.
    """
    with storage_errors(f"the run folder {run.root} could not be made", "nothing was started"):
        made = [folder for folder in (run.root, *run.root.parents) if not folder.exists()]
        run.root.mkdir(parents=True, exist_ok=True)
    lease.take(tell)
    try:
        yield
    finally:
        lease.release()
        if not run.experiment.exists():
            run.start.unlink(missing_ok=True)
        if made and not run.experiment.exists():
            with contextlib.suppress(OSError):
                shutil.rmtree(run.lease)
                for folder in made:
                    folder.rmdir()


@contextlib.contextmanager
def stop_requests() -> Iterator[Callable[[], int]]:
    """The signal that asked for a stop at the end of the period, or 0; a second SIGINT ends at once."""
    wanted = 0

    def ask(number: int, _: FrameType | None) -> None:
        nonlocal wanted
        wanted = number
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    with stops_answered_by(ask):
        yield lambda: wanted
