"""A fixed set of threads, and the bounded queue before them."""

from __future__ import annotations

import heapq
import itertools
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

_Result = TypeVar("_Result")


class QueueFullError(Exception):
    """As many jobs wait as may."""


class Workers:
    """Runs jobs in the order in which they came; those of the background only while no other waits.

    ``taken`` hears, in the job's thread, how many jobs are in the works when one is begun.
    """

    def __init__(self, threads: int, most_waiting: int, taken: Callable[[int], None] = lambda _: None) -> None:
        self._most_waiting, self._taken = most_waiting, taken
        self._changed = threading.Condition()
        self._heap: list[tuple[int, int, Future[Any], Callable[[], Any]]] = []
        self._numbers = itertools.count()
        self._waiting = self._busy = 0
        self._closed = False
        self._threads = [threading.Thread(target=self._work, name=f"serve-{number}", daemon=True)
                         for number in range(threads)]
        for thread in self._threads:
            thread.start()

    @property
    def waiting(self) -> int:
        """Jobs that no thread has begun, those of the background not counted."""
        return self._waiting

    @property
    def full(self) -> bool:
        return self._waiting >= self._most_waiting

    def submit(self, job: Callable[[], _Result], *, background: bool = False) -> Future[_Result]:
        """Raises QueueFullError; never for a job of the background, whose number its sender must bound."""
        future: Future[_Result] = Future()
        with self._changed:
            if self._closed:
                future.cancel()
                return future
            if not background:
                if self.full:
                    raise QueueFullError
                self._waiting += 1
            heapq.heappush(self._heap, (int(background), next(self._numbers), future, job))
            self._changed.notify()
        return future

    def close(self) -> None:
        """Do what waits, but nothing of the background, and end the threads."""
        with self._changed:
            self._closed = True
            dropped = [entry for entry in self._heap if entry[0]]
            self._heap = sorted(entry for entry in self._heap if not entry[0])
            self._changed.notify_all()
        for _, _, future, _ in dropped:
            future.cancel()
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._heap or self._closed)
                if not self._heap:
                    return
                background, _, future, job = heapq.heappop(self._heap)
                if not background:
                    self._waiting -= 1
                if not future.set_running_or_notify_cancel():
                    continue
                self._busy += 1
                busy = self._busy
            try:
                self._taken(busy)
                result = job()
            except BaseException as error:  # whoever waits for the result hears of it
                future.set_exception(error)
            else:
                future.set_result(result)
            finally:
                with self._changed:
                    self._busy -= 1
            del future, job  # else an idle thread keeps the last image
