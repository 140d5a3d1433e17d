"""Work spread over processes, which end with the one that started them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, TypeVar

from distrib.errors import DataError

_State = TypeVar("_State")
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def allowed_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0))


def spread(task: Callable[[_State, Sequence[_Item]], _Result], state: _State, items: Sequence[_Item], *,
           workers: int, at_once: int) -> Iterator[_Result]:
    """``task(state, some items)`` over all items, ``at_once`` at a time; results come in no particular order.

    ``task`` is a function of a module; with one worker, or little to do, it runs in this process. At most four
    calls a worker wait or run. What ``task`` raises is raised here; a worker that dies raises DataError.
    """
    chunks = [items[start:start + at_once] for start in range(0, len(items), at_once)]
    workers = min(workers, len(chunks) // 4)  # a process takes about as long to start as a few chunks
    if workers <= 1:
        yield from (task(state, chunk) for chunk in chunks)
        return
    # Spawned, not forked: the parent may have threads (a progress bar), whose locks a fork would copy.
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _begin, (task, state))
    running: set[Future[_Result]] = set()
    try:
        for chunk in chunks:
            if len(running) >= 4 * workers:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
            with _interrupts_blocked():
                running.add(pool.submit(_run, chunk))
        while running:
            done, running = wait(running, return_when=FIRST_COMPLETED)
            yield from (future.result() for future in done)
    except BrokenProcessPool as error:
        raise DataError("a worker process died", "the work was given up; the memory may have run out",
                        "try again with fewer --workers") from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Processes started inside never see SIGINT: Ctrl-C is for their parent, which ends them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_work: tuple[Callable[[Any, Any], Any], Any]


def _begin(task: Callable[[Any, Any], Any], state: Any) -> None:
    """First thing in every worker."""
    global _work
    _work = task, state
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _run(chunk: Any) -> Any:
    task, state = _work
    return task(state, chunk)
