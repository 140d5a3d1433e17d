"""Collectives under way in Horovod, as c10d wants them: waited for, asked, or followed by a future."""

from __future__ import annotations

import datetime
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import horovod.torch as hvd
import torch
from torch import Tensor
from torch._C._distributed_c10d import Work

SHORTEST_S, LONGEST_S = 0.0001, 0.001
"""How often unfinished collectives are looked at: at first, and once they have taken a while. Horovod tells nobody
when one is done; its own `synchronize` also asks again and again."""

_NO_TIMEOUT = datetime.timedelta(0)


class HorovodWork(Work):
    """One collective: the Horovod operations it consists of, and what is to be done with their results."""

    def __init__(self, doing: str, handles: Sequence[int], finish: Callable[[list[Any]], list[Tensor]],
                 timeout_s: float) -> None:
        super().__init__()
        self._doing, self._handles, self._finish = doing, handles, finish
        self._timeout_s, self._begun = timeout_s, time.monotonic()
        self._done = threading.Event()
        self._error: Exception | None = None
        self._result: list[Tensor] = []
        self._future: torch.futures.Future[list[Tensor]] = torch.futures.Future()
        if handles:
            _COMPLETIONS.add(self)
        else:
            self._end()

    def wait(self, timeout: datetime.timedelta = _NO_TIMEOUT) -> bool:
        """Wait until it is done. Raises RuntimeError if it failed or took longer than the group allows."""
        if not self._done.wait(timeout.total_seconds() or None):
            raise RuntimeError(f"{self._doing} timed out after {timeout.total_seconds():g} s")
        if self._error is not None:
            raise self._error
        return True

    def synchronize(self) -> None:
        self.wait()

    def is_completed(self) -> bool:
        return self._done.is_set()

    def is_success(self) -> bool:
        return self._done.is_set() and self._error is None

    def exception(self) -> Exception | None:
        return self._error

    def result(self) -> list[Tensor]:
        self.wait()
        return self._result

    def get_future(self) -> torch.futures.Future[list[Tensor]]:
        return self._future

    def look(self, now: float) -> bool:
        """Whether it has ended, by success, failure or time; called by the one thread that watches."""
        if all(hvd.poll(handle) for handle in self._handles):
            self._end()
            return True
        if now - self._begun > self._timeout_s:
            self.fail(RuntimeError(f"{self._doing} timed out after {self._timeout_s:g} s"))
            return True
        return False

    def fail(self, error: Exception) -> None:
        """End it without a result. What Horovod still holds of it stays Horovod's."""
        self._error = error
        self._done.set()
        self._future.set_exception(error)  # type: ignore[arg-type]  # its stub asks for a result

    def _end(self) -> None:
        try:
            self._result = self._finish([hvd.synchronize(handle) for handle in self._handles])
        except (RuntimeError, ValueError) as error:
            self.fail(RuntimeError(f"{self._doing} failed: {error}"))
            return
        self._done.set()
        self._future.set_result(self._result)


class _Completions:
    """The thread that sees collectives end. It starts with the first of them and sleeps while there are none."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._new: list[HorovodWork] = []
        self._thread: threading.Thread | None = None

    def add(self, work: HorovodWork) -> None:
        with self._changed:
            if self._thread is None:
                self._thread = threading.Thread(target=self._watch, name="horovod-completions", daemon=True)
                self._thread.start()
            self._new.append(work)
            self._changed.notify()

    @torch.no_grad()
    def _watch(self) -> None:
        pending: list[HorovodWork] = []
        pause_s = SHORTEST_S
        while True:
            with self._changed:
                if not pending:
                    self._changed.wait_for(lambda: self._new)
                if self._new:
                    pause_s = SHORTEST_S
                    pending += self._new
                    self._new = []
            left = [work for work in pending if not work.look(time.monotonic())]
            pause_s = SHORTEST_S if len(left) < len(pending) else min(pause_s * 1.2, LONGEST_S)
            pending = left
            if pending:
                time.sleep(pause_s)


_COMPLETIONS = _Completions()
