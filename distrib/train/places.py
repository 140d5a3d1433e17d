"""Where ranks run, and which of them share a machine."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from distrib.comm.group import Group

_HELLO_BYTES = 512


@dataclass(frozen=True)
class Place:
    """Where a rank runs."""

    host: str
    node: int
    """The lowest rank on its machine, which does for all of them what a machine needs once."""


def places_of(group: Group) -> list[Place]:
    """Collective: of every rank. Ranks with one host name on one machine share a node; local ranks are not asked for,
    because not every launcher tells them."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    machine = boot.read_text().strip() if boot.exists() else ""
    hello = json.dumps([group.world.host[:64], machine]).encode()[:_HELLO_BYTES]
    row = np.zeros(_HELLO_BYTES)
    row[:len(hello)] = np.frombuffer(hello, dtype=np.uint8)
    hellos = [bytes(other.astype(np.uint8)).rstrip(b"\0") for other in group.rows_of_all(row)]
    return [Place(json.loads(other)[0], hellos.index(other)) for other in hellos]
