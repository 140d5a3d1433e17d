"""The contract that every communication backend keeps, in real processes on loopback. A new one adds a line."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from distrib.comm.table import BACKENDS
from launch.local import free_port

Start = Callable[..., "subprocess.Popen[str]"]
RANK_PROGRAM = Path(__file__).with_name("collectives.py")
LIMIT_S = 100


@dataclass(frozen=True)
class Backend:
    """A backend, and what it may leave out: what is named here must raise, on every rank, never be wrong."""

    name: str
    refused: frozenset[str] = frozenset()
    """Names of checks, operations, `reduce DTYPE` or `move DTYPE`."""
    aborts_with_subgroups: bool = False
    """Whether, where there are subgroups, the survivors of a killed peer may end at once without an exception."""


CONTRACT = {
    backend.name: backend for backend in (
        Backend("gloo"),
        Backend("oneccl"),
        Backend("horovod", refused=frozenset({"send_and_receive"}), aborts_with_subgroups=True),
    )
}


@pytest.fixture(params=CONTRACT)
def backend(request: pytest.FixtureRequest) -> Backend:
    name: str = request.param
    lack = importlib.import_module(BACKENDS[name].partition(":")[0]).missing()
    if lack is not None:
        assert os.environ.get("CI") != "true", lack
        pytest.skip(lack)
    return CONTRACT[name]


def start_ranks(start: Start, backend: Backend, part: str, size: int, ports: int = 1) -> list[subprocess.Popen[str]]:
    environment = {"PORTS": ",".join(str(free_port()) for _ in range(ports)), "WORLD_SIZE": str(size),
                   "REFUSED": json.dumps(sorted(backend.refused))}
    return [start(sys.executable, RANK_PROGRAM, backend.name, part, RANK=str(rank), **environment)
            for rank in range(size)]


def results(process: subprocess.Popen[str]) -> dict[str, str | None]:
    out, err = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0, err[-3000:]
    answered: dict[str, str | None] = json.loads(out)
    return answered


@pytest.mark.timeout(LIMIT_S + 20)
@pytest.mark.parametrize("size", [1, 3, *(pytest.param(size, marks=pytest.mark.soak) for size in (2, 4))])
def test_collectives(start: Start, backend: Backend, size: int) -> None:
    for rank, process in enumerate(start_ranks(start, backend, "all", size)):
        answered = results(process)
        wrong = {name: why for name, why in answered.items() if why is not None}
        assert not wrong, f"rank {rank}: {len(wrong)} of {len(answered)}: {sorted(wrong)}\n" + "\n".join(
            f"{name}: {why}" for name, why in list(wrong.items())[:3])
        assert len(answered) > 100
        assert not list(Path("/dev/shm").glob(f"{process.pid}:*"))


@pytest.mark.timeout(60)
def test_a_rank_that_does_not_come_is_an_error(start: Start, backend: Backend) -> None:
    ranks = start_ranks(start, backend, "lateness", 3)
    for process in ranks[:2]:
        assert results(process) == {"timeout": None}
    ranks[2].communicate(timeout=LIMIT_S)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize("when", ["before", "during", "after"])
def test_a_killed_peer_is_an_error_within_seconds(start: Start, backend: Backend, when: str, victim: int) -> None:
    ranks = start_ranks(start, backend, f"death:{when}:{victim}", 3)
    ranks[victim].wait(LIMIT_S)
    assert ranks[victim].returncode == -signal.SIGKILL
    begun = time.monotonic()
    for rank in set(range(3)) - {victim}:
        assert results(ranks[rank]) == {"death": None}
    assert time.monotonic() - begun < 10  # they also end


@pytest.mark.timeout(60)
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_peer_ends_the_others_also_with_subgroups(start: Start, backend: Backend, victim: int) -> None:
    ranks = start_ranks(start, backend, f"death:before:{victim}:subgroups", 3)
    ranks[victim].wait(LIMIT_S)
    begun = time.monotonic()
    for rank in set(range(3)) - {victim}:
        if backend.aborts_with_subgroups:
            ranks[rank].communicate(timeout=LIMIT_S)
        else:
            assert results(ranks[rank]) == {"death": None}
    assert time.monotonic() - begun < 10


@pytest.mark.timeout(60)
def test_groups_are_made_again_in_the_same_process(start: Start, backend: Backend) -> None:
    ranks = start_ranks(start, backend, "again", 3, ports=4)
    answers = [results(process) for process in ranks]
    assert answers[0] == dict.fromkeys(("time 0", "time 1", "time 2", "time 3"))
    assert answers[2] == dict.fromkeys(("time 0", "time 1", "time 2"))
