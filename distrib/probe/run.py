"""One probe from its meeting with the others to the end. What fails is told, and the rest goes on."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import math
import os
import platform
import secrets
import signal
import socket
import statistics
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from distrib import __version__
from distrib.comm.group import Group
from distrib.comm.table import backend_module
from distrib.errors import DistribError
from distrib.probe import links
from distrib.probe.company import Company
from distrib.probe.compute import Meter
from distrib.probe.folder import ProbeFolder
from distrib.probe.names import choose_address, own_addresses, resolve
from distrib.world import World, read_world

LIMIT_S = 280
"""The kernel ends a probe that still runs then: it hangs."""
SEE_S = 10.0
"""A network file system shows a new file to the others within so long (NFS: 3 s, and some more)."""
PASSES = 3
"""What looks slow is measured anew, so often at most in all: chance does not strike thrice."""
DOUBTFUL = 0.85
"""What is below this part of the median is measured anew. The judge's limits are lower."""
LINKS_S = 20.0
"""All bandwidths of one pass take so long at most, whatever the number of nodes."""
LINK_WINDOW_S = (0.05, 0.25)
"""The least and the most for one bandwidth."""
SUM_S = 0.5
"""One all-reduce takes about so long, or has MAX_SUM_BYTES."""
FIRST_SUM_BYTES = 1 << 18
MAX_SUM_BYTES = 1 << 26
SUM_REPEATS = 3
SUM_LIMIT_S = 20.0
"""For the ranks to meet, and for each sum."""


def run_probe(folder: ProbeFolder, backend: str) -> None:
    """Measure and tell, until done or until nothing more can be measured."""
    signal.alarm(LIMIT_S)
    own = socket.gethostname()
    folder.put({"host": own, "versions": versions(), "own_name": resolve(own), "addresses": own_addresses(),
                "boot": _boot_id()})
    with _told(folder, "start"):
        world = read_world()
        if world.size == 1:
            _alone(folder)
        else:
            _Probe(folder, world, backend).run()
    folder.put({"finished": "error" not in folder.found})


def versions() -> dict[str, str | None]:
    """Of what must be the same everywhere; None for what is not there."""
    found: dict[str, str | None] = {"python": platform.python_version(), "distrib": __version__}
    for package in ("torch", "numpy"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    # The others of the table are for those who ask for them by name.
    oneccl = backend_module("oneccl")
    found["oneccl"] = oneccl.version() if oneccl.missing() is None else None
    return found


def _alone(folder: ProbeFolder) -> None:
    meter = Meter()
    meter.measure()
    folder.put({"compute": meter.figures()})


@contextlib.contextmanager
def _told(folder: ProbeFolder, part: str) -> Iterator[None]:
    """What fails in a part of the probe is written down. No part after it can be relied on."""
    try:
        yield
    except (RuntimeError, OSError, ValueError, DistribError) as error:
        text = error.one_line() if isinstance(error, DistribError) else str(error) or type(error).__name__
        folder.put({"error": f"{part}: {text.splitlines()[0][:300]}"})


class _Probe:
    def __init__(self, folder: ProbeFolder, world: World, backend: str) -> None:
        self._folder, self._world, self._backend = folder, world, backend

    def run(self) -> None:
        self._company = Company(self._world)
        self._folder.put({"absent": self._company.absent})
        if len(self._company.ranks) == 1:
            _alone(self._folder)
            return
        token = secrets.token_hex(16)
        self._folder.put_token(token)
        self._introduce(token)
        self._folder.put({"unseen": self._folder.unseen({rank: card["token"] for rank, card in self._cards.items()},
                                                        SEE_S)})
        self._resolve()
        self._compute()
        self._links()
        self._sum()
        self._company.leave()

    def _introduce(self, token: str) -> None:
        """Everybody's address, port, token and machine."""
        company, first = self._company, self._world.is_first
        # Rank 0 can not ask for the way to itself; it asks for the way to another, who has found its own.
        address, self._interface = ("", None) if first else choose_address(self._world.master_addr)
        known = company.share("address", address)
        if first:
            address, self._interface = choose_address(next(filter(None, known.values())))
        self._listener = links.listen(address)
        self._cards = company.share("card", {
            "address": address, "port": self._listener.getsockname()[1], "host": self._world.host,
            "addresses": own_addresses(), "token": token, "boot": _boot_id() or token})
        self._folder.put({"address": address, "interface": self._interface})

    def _resolve(self) -> None:
        """What the others' names mean here."""
        names = self._folder.names()
        self._folder.put({"resolved": {
            str(rank): resolve(names[rank] if rank < len(names) else card["host"])
            for rank, card in self._cards.items() if rank != self._world.rank}})

    def _compute(self) -> None:
        """Nodes of one machine, as in tests, have the same cores, and compute in turn."""
        rank, company, meter = self._world.rank, self._company, Meter()
        boots = {other: card["boot"] for other, card in self._cards.items()}
        turns = {other: sum(boots[before] == boots[other] for before in company.ranks if before < other)
                 for other in company.ranks}
        todo = company.ranks
        for _ in range(PASSES):
            for turn in range(max(turns.values()) + 1):
                if rank in todo and turns[rank] == turn:
                    meter.measure()
                company.wait()
            self._folder.put({"compute": meter.figures()})
            todo = company.decide("doubtful", self._folder.found["compute"], doubtful)
            if not todo:
                break

    def _links(self) -> None:
        company, schedule = self._company, links.rounds(self._company.ranks)
        least, most = LINK_WINDOW_S
        window_s = min(most, max(least, LINKS_S / len(schedule) / 2))
        todo = {pair for pairs in schedule for pair in pairs}
        found: dict[int, dict[str, Any]] = {}
        for number in range(PASSES):
            for pairs in schedule:
                mine = next((pair for pair in pairs if pair in todo and self._world.rank in pair), None)
                if mine is not None:
                    other = mine[0] + mine[1] - self._world.rank
                    found[other] = better(found.get(other), self._link(mine, number, window_s))
                if todo.intersection(pairs):
                    company.wait()
            self._folder.put({"links": {str(other): link for other, link in found.items()}})
            received = {str(other): link["received"] for other, link in found.items()}
            todo = {(a, b) for a, b in company.decide("slow links", received, doubtful_pairs)}
            if not todo:
                break

    def _link(self, pair: tuple[int, int], number: int, window_s: float) -> dict[str, Any]:
        caller, listener = pair
        card = self._cards[listener]
        greeting = f"{card['token']} {caller} {number}"
        found: dict[str, Any] = {"latency_s": None, "ahead_s": None, "clock_error_s": None, "received": None,
                                 "waited": None, "error": None}
        try:
            if self._world.rank == listener:
                links.serve(self._listener, greeting, "ping", window_s)
                waiting = links.Waiting()
                found["received"] = links.serve(self._listener, greeting, "send", window_s)
                links.serve(self._listener, greeting, "take", window_s)
            else:
                where = card["address"], card["port"]
                pinged = links.ping(*where, greeting)
                found |= {"latency_s": pinged.latency_s, "ahead_s": pinged.ahead_s, "clock_error_s": pinged.error_s}
                waiting = links.Waiting()
                links.send(*where, greeting, window_s)
                found["received"] = links.take(*where, greeting, window_s)
            found["waited"] = waiting.part()
        except (OSError, ValueError) as error:
            found["error"] = str(error) or type(error).__name__
        return found

    def _sum(self) -> None:
        """The all-reduce of the training itself."""
        company, cards = self._company, self._cards
        if self._interface:
            os.environ.setdefault("GLOO_SOCKET_IFNAME", self._interface)
        ports = company.share("port", _free_port() if self._world.is_first else 0)
        # The store of the company stays open; the group meets at a port of its own.
        world = dataclasses.replace(
            self._world, rank=company.ranks.index(self._world.rank), size=len(company.ranks), local_rank=0,
            local_size=1, master_addr=cards[company.ranks[0]]["address"], master_port=ports[company.ranks[0]])
        try:
            with Group(world, self._backend, SUM_LIMIT_S) as group:
                self._folder.put({"all_reduce": {**measure_sum(group), "backend": group.backend,
                                                 "why": group.choice.why}})
        except DistribError as error:
            self._folder.put({"all_reduce_error": error.one_line()})


def measure_sum(group: Group) -> dict[str, float]:
    """Bytes summed, seconds of the best, bytes a second that each rank sent (2 (n - 1) / n of them); collective."""
    size, small = FIRST_SUM_BYTES, min(_time_sum(group, 8) for _ in range(10))
    while (seconds := _time_sum(group, size)) < SUM_S / 4 and size < MAX_SUM_BYTES:
        size *= 4
    seconds = min(seconds, *(_time_sum(group, size) for _ in range(SUM_REPEATS)))
    return {"bytes": size, "seconds": seconds, "bandwidth": 2 * (group.size - 1) / group.size * size / seconds,
            "small_s": small}


def _time_sum(group: Group, num_bytes: int) -> float:
    """Seconds of one all-reduce, by the slowest rank."""
    tensor = torch.zeros(num_bytes // 4)
    group.all_reduce(torch.zeros(1))  # all are here
    begin = time.perf_counter()
    group.all_reduce(tensor)
    took = torch.tensor([time.perf_counter() - begin], dtype=torch.float64)
    group.all_reduce(took, "max")
    return float(took)


def doubtful(figures: Mapping[int, Mapping[str, float]]) -> list[int]:
    """Ranks (of more than one) of which some figure is well below the median of the others'. Pure."""
    found = []
    for rank, mine in figures.items():
        others = [theirs for other, theirs in figures.items() if other != rank]
        if any(mine[name] < DOUBTFUL * statistics.median(other[name] for other in others)
               for name in ("share", "fp32", "bf16", "memory")):
            found.append(rank)
    return found


def doubtful_pairs(received: Mapping[int, Mapping[str, float | None]]) -> list[tuple[int, int]]:
    """Pairs of ranks whose link failed, or is well below the median one way or the other. Pure."""
    rates: dict[tuple[int, int], float] = {}
    for rank, sources in received.items():
        for name, rate in sources.items():
            pair = (min(rank, int(name)), max(rank, int(name)))
            rates[pair] = min(rates.get(pair, math.inf), rate or 0.0)
    # One slow node of three makes most links slow; so each node counts by its best.
    best = {rank: max(rate for other, rate in rates.items() if rank in other) for pair in rates for rank in pair}
    return [pair for pair, rate in rates.items() if rate < DOUBTFUL * statistics.median(best.values())]


def better(old: dict[str, Any] | None, new: dict[str, Any]) -> dict[str, Any]:
    """The best of two measurements of one link. Pure."""
    if old is None or new["error"] is not None:
        return old or new
    if old["error"] is not None:
        return new
    quicker = new if new["latency_s"] is not None and new["latency_s"] < old["latency_s"] else old
    wider = max(old, new, key=lambda link: float(link["received"]))
    return {**quicker, "received": wider["received"], "waited": wider["waited"]}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


def _boot_id() -> str:
    """The same for all network namespaces and containers of one machine."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
