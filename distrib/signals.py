"""Who answers the signals that ask a process to end."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from types import FrameType


@contextlib.contextmanager
def stops_answered_by(answer: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Within the block SIGTERM and SIGINT call ``answer``; afterwards whoever did before."""
    before = {number: signal.signal(number, answer) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
