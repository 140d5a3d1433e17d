"""Ranks that die at random moments, and what the survivors notice of it.

    python -m tests.rig.deaths BACKEND ACTION PHASE COUNT SEED [--again]

ACTION is kill (-9), stop (silence) or leave (in order). PHASE is start, training or both. Prints one line of JSON a
trial. This process imports torch once and forks every rank of every trial from there; it starts no thread itself.
With --again the survivors make a group of their own in the same processes.
"""

from __future__ import annotations

import argparse
import datetime
import json
import mmap
import os
import random
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.distributed as dist

from distrib.comm import oneccl
from distrib.comm.group import Group, Meeting
from distrib.comm.meeting import open_store
from distrib.comm.table import backend_module
from distrib.errors import WorldError
from distrib.world import World
from launch.local import free_port
from launch.processes import remove_shared_memory

SIZE = 3
START_S, TRAINING_S = 0.25, 0.8
NAMED_S = 0.05
"""By then a rank has told the store its name; one that dies before can not be told from a late one."""
LIMIT_S = 15.0
TIMEOUT_S = 60.0
EXIT_CODE = 7
"""Of a rank that had its exception: no other end gives it by chance."""
SIGNALS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP, "leave": signal.SIGUSR1}
TENSORS_BYTES = (4 << 10, 64 << 10, 1 << 20, 4 << 20, 25_000_000)
_SLOT = 128
Doing = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """Who dies, and how long after it began to make the group (start) or the first collective ended (training)."""

    number: int
    victim: int
    action: str
    phase: str
    moment_s: float


@dataclass
class Survivor:
    """What became of a survivor. ``seconds``: from the death to its exception; None if there was none."""

    rank: int
    seconds: float | None = None
    message: str = ""
    exit_code: int | None = None
    """Negative for a signal; None for a rank that hung."""
    again: str = ""
    """How the survivors' own group went: empty if it was not tried, else "right" or what went wrong."""


@dataclass
class Trial:
    plan: Plan
    doing: str = ""
    """What the victim was at when it died."""
    survivors: list[Survivor] = field(default_factory=list)


def make_plans(seed: int, count: int, action: str, phase: str) -> list[Plan]:
    """A pure function: two of five moments during the start, every rank a victim in turn of a shuffled order."""
    generator = random.Random(seed)
    victims = [number % SIZE for number in range(count)]
    generator.shuffle(victims)
    plans = []
    for number, victim in enumerate(victims):
        chosen = phase if phase != "both" else "start" if number % 5 < 2 else "training"
        plans.append(Plan(number, victim, action, chosen,
                          generator.uniform(NAMED_S, START_S) if chosen == "start"
                          else generator.uniform(0, TRAINING_S)))
    return plans


class Leave(BaseException):
    """The rank is to leave in order."""


class Board:
    """What every rank is at, in memory that all processes share."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, _SLOT * SIZE)

    def write(self, rank: int, text: str) -> None:
        content = text.encode()[:_SLOT]
        self._memory[rank * _SLOT:(rank + 1) * _SLOT] = content.ljust(_SLOT)

    def read(self, rank: int) -> str:
        return self._memory[rank * _SLOT:(rank + 1) * _SLOT].rstrip(b"\0 ").decode()


def train(group: Group, doing: Doing) -> NoReturn:
    """Collectives as in training, some in flight at once, for ever. Raises WorldError."""
    generator = random.Random(5)
    tensors = [torch.ones(size // 4) for size in TENSORS_BYTES]
    for step in range(sys.maxsize):
        number = generator.randrange(1, 6)
        chosen = generator.choices(range(len(tensors)), weights=(4, 4, 3, 2, 1), k=number)
        in_flight = [tensors[which].clone() for which in chosen]
        doing(f"step {step}: {number} all-reduces in flight, {sum(4 * t.numel() for t in in_flight) >> 10} KB")
        pending = [group.start_all_reduce(tensor) for tensor in in_flight]
        for one in pending:
            one.wait()
        if step % 3 == 0:
            doing(f"step {step}: barrier")
            with group._lost_peer("a barrier"):
                dist.barrier()
        if step % 3 == 1:
            doing(f"step {step}: broadcast")
            group.broadcast([tensors[generator.randrange(4)]])
        doing(f"step {step}: computing")
        time.sleep(generator.uniform(0, 0.01))
    raise AssertionError("no rank trains for ever")


def be_rank(rank: int, plan: Plan, backend: str, ports: list[int], doing: Doing, again: bool) -> dict[str, Any]:
    """One rank's life; what it has to say at its end."""
    torch.set_num_threads(1)

    def leave(*_: object) -> None:
        raise Leave

    signal.signal(signal.SIGUSR1, leave)
    host = socket.gethostname()
    extension: Any = oneccl._extension()
    create = extension.create

    def watched_create(*arguments: Any) -> Any:
        doing("making the group")
        return create(*arguments)

    extension.create = watched_create
    doing("opening the store")
    found: dict[str, Any] = {}
    try:
        with Group(World(rank, SIZE, rank, SIZE, "127.0.0.1", ports[0], host=host, launcher="rig"), backend,
                   TIMEOUT_S) as group:
            doing("first collective")
            try:
                group.all_reduce(torch.ones(1000))
                train(group, doing)
            except WorldError as error:
                found = {"at": time.monotonic(), "message": str(error)}
    except WorldError as error:
        found = {"at": time.monotonic(), "message": str(error)}
    except Leave:
        return {}
    if again:
        new_rank = rank - (rank > plan.victim)
        try:
            world = World(new_rank, SIZE - 1, new_rank, SIZE - 1, "127.0.0.1", ports[1], host=host, launcher="rig")
            store = open_store(world, datetime.timedelta(seconds=10))
            with Group(world, backend, 10.0, Meeting(store, lambda: None)) as group:
                for bytes_ in TENSORS_BYTES:
                    tensor = torch.full((bytes_ // 4,), float(new_rank + 1))
                    group.all_reduce(tensor)
                    if not bool((tensor == 3).all()):
                        raise ValueError(f"a wrong sum: {tensor.unique()[:3]}")
            found["again"] = "right"
        except (WorldError, ValueError) as error:
            found["again"] = str(error)
    return found


def run_trial(plan: Plan, backend: str, again: bool) -> Trial | dict[str, Any]:
    """In the parent the trial; in a forked rank what it has to say, its channel filled."""
    board = Board()
    ports = [free_port(), free_port()]
    pids, channels = [], []
    for rank in range(SIZE):
        readable, writable = os.pipe()
        pid = os.fork()
        if pid == 0:
            found = be_rank(rank, plan, backend, ports, partial(board.write, rank), again)
            os.write(writable, json.dumps(found).encode()[:60_000])
            return found
        os.close(writable)
        pids.append(pid)
        channels.append(readable)
    codes: dict[int, int] = {}
    try:
        before = ("", "opening the store", *(() if plan.phase == "start" else ("making the group", "first collective")))
        limit = time.monotonic() + LIMIT_S
        while board.read(plan.victim) in before and time.monotonic() < limit:
            time.sleep(0.0005)
        time.sleep(plan.moment_s)
        died = time.monotonic()
        os.kill(pids[plan.victim], SIGNALS[plan.action])
        trial = Trial(plan, board.read(plan.victim))
        waited_for = [rank for rank in range(SIZE) if rank != plan.victim or plan.action == "leave"]
        while len(codes) < len(waited_for) and time.monotonic() < died + LIMIT_S + 60 * again:
            for rank in waited_for:
                if rank not in codes and (ended := os.waitpid(pids[rank], os.WNOHANG))[0]:
                    codes[rank] = os.waitstatus_to_exitcode(ended[1])
            time.sleep(0.002)
    finally:
        for rank, pid in enumerate(pids):
            if rank not in codes:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            remove_shared_memory(pid)
    for rank, channel in enumerate(channels):
        with os.fdopen(channel) as stream:
            content = stream.read()
        if rank != plan.victim:
            said = json.loads(content) if content else {}
            trial.survivors.append(Survivor(rank, round(said["at"] - died, 3) if "at" in said else None,
                                            said.get("message", board.read(rank)), codes.get(rank),
                                            said.get("again", "")))
    return trial


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("backend")
    parser.add_argument("action", choices=SIGNALS)
    parser.add_argument("phase", choices=("start", "training", "both"))
    parser.add_argument("count", type=int)
    parser.add_argument("seed", type=int)
    parser.add_argument("--again", action="store_true")
    wanted = parser.parse_args()
    lack = backend_module(wanted.backend).missing()  # loads it, too
    assert lack is None, lack
    assert len(list(Path("/proc/self/task").iterdir())) == 1, "a forked rank would lack a thread"
    for plan in make_plans(wanted.seed, wanted.count, wanted.action, wanted.phase):
        trial = run_trial(plan, wanted.backend, wanted.again)
        if isinstance(trial, dict):
            sys.exit(EXIT_CODE if trial else 0)
        print(json.dumps(asdict(trial)), flush=True)


if __name__ == "__main__":
    main()
