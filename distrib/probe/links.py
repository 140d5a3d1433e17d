"""Latency, bandwidth and clocks between two nodes, over plain TCP sockets.

The pairs meet as in a tournament: in each round every node has one partner, so pairs do not disturb each other.
The node of the lower rank calls; the other listens. A call says who calls and what for:

    b"TOKEN RANK KIND\\n", KIND one of ping, send, take; then
    ping: the caller sends 8 bytes, the listener answers with its clock (a double), many times
    send: the caller sends until its window is over, and the listener counts
    take: the same the other way round

Who counts keeps the result: nothing is sent back, as a connection that is reset may lose it.
"""

from __future__ import annotations

import socket
import struct
import time
from pathlib import Path
from typing import NamedTuple

PINGS = 60
SHARE_SKIPPED = 0.25
"""The first part of a window does not count: TCP begins slowly, and a full bucket of a rate limiter is quick."""
PATIENCE = 1.6
"""After so many windows the receiver has seen enough, though the sender's buffers are not empty."""
TIMEOUT_S = 8.0
BLOCK = bytes(1 << 18)
LINE_BYTES = 200


class Pinged(NamedTuple):
    """Round trips with a partner."""

    latency_s: float
    """One way: half of the quickest round trip."""
    ahead_s: float
    """How far the partner's clock is ahead of this one's, by the quickest round trip (as NTP does)."""
    error_s: float
    """It may be wrong by so much."""


def rounds(ranks: list[int]) -> list[list[tuple[int, int]]]:
    """All pairs of ranks, the lower first, in as few rounds as can be (the circle method). Pure."""
    ring: list[int | None] = [*ranks, *([None] if len(ranks) % 2 else [])]
    found = []
    for _ in range(len(ring) - 1):
        half = len(ring) // 2
        pairs = zip(ring[:half], reversed(ring[half:]), strict=True)
        found.append([(min(a, b), max(a, b)) for a, b in pairs if a is not None and b is not None])
        ring.insert(1, ring.pop())
    return found


class Waiting:
    """How much of its time this thread waited for a processor: then the link is not to blame for what is slow."""

    def __init__(self) -> None:
        self._begin, self._delay_s = time.perf_counter(), _delay_s()

    def part(self) -> float:
        """Since the beginning, 0 to 1; 0 where the kernel does not tell."""
        span = time.perf_counter() - self._begin
        return min(1.0, max(0.0, _delay_s() - self._delay_s) / span) if span > 0 else 0.0


def _delay_s() -> float:
    try:
        return int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e9
    except (OSError, ValueError, IndexError):
        return 0.0


def listen(address: str) -> socket.socket:
    """A listening socket at a free port of an address. Raises OSError."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.bind((address, 0))
    listener.listen(64)
    listener.settimeout(TIMEOUT_S)
    return listener


def ping(address: str, port: int, greeting: str) -> Pinged:
    """Measure round trips to a partner that listens. Raises OSError."""
    with _call(address, port, f"{greeting} ping") as line:
        trips = []
        for _ in range(PINGS):
            before, sent = time.time(), time.perf_counter()
            line.sendall(struct.pack("!d", before))
            (theirs,) = struct.unpack("!d", _exactly(line, 8))
            trip = time.perf_counter() - sent
            trips.append((trip, theirs - (before + trip / 2)))
    trip, ahead = min(trips)
    return Pinged(trip / 2, ahead, trip / 2)


def send(address: str, port: int, greeting: str, window_s: float) -> None:
    """Send to a listening partner, who counts. Raises OSError."""
    with _call(address, port, f"{greeting} send") as line:
        _pour(line, window_s)


def take(address: str, port: int, greeting: str, window_s: float) -> float:
    """Bytes a second from a listening partner. Raises OSError."""
    with _call(address, port, f"{greeting} take") as line:
        return _count(line, window_s)


def serve(listener: socket.socket, greeting: str, kind: str, window_s: float) -> float:
    """Answer one call of the partner who greets so; calls of others are dropped. Raises OSError.

    Returns the bytes a second that came, for `send`.
    """
    deadline = time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline:
        line, _ = listener.accept()
        with line:
            _prepare(line)
            if _greeting(line) != f"{greeting} {kind}":
                continue
            if kind == "ping":
                for _ in range(PINGS):
                    _exactly(line, 8)
                    line.sendall(struct.pack("!d", time.time()))
            elif kind == "send":
                return _count(line, window_s)
            else:
                _pour(line, window_s)
            return 0.0
    raise TimeoutError("nobody called")


def _call(address: str, port: int, greeting: str) -> socket.socket:
    line = socket.create_connection((address, port), TIMEOUT_S)
    _prepare(line)
    line.sendall(f"{greeting}\n".encode())
    return line


def _prepare(line: socket.socket) -> None:
    line.settimeout(TIMEOUT_S)
    line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _greeting(line: socket.socket) -> str:
    said = b""
    while not said.endswith(b"\n") and len(said) < LINE_BYTES:
        more = line.recv(1)
        if not more:
            break
        said += more
    return said.decode(errors="replace").rstrip("\n")


def _exactly(line: socket.socket, count: int) -> bytes:
    said = b""
    while len(said) < count:
        more = line.recv(count - len(said))
        if not more:
            raise ConnectionError("the partner hung up")
        said += more
    return said


def _pour(line: socket.socket, window_s: float) -> None:
    """Send for a window's time, or until the receiver has enough."""
    end = time.monotonic() + window_s
    try:
        while time.monotonic() < end:
            line.sendall(BLOCK)
    except (BrokenPipeError, ConnectionResetError):
        return


def _count(line: socket.socket, window_s: float) -> float:
    """Bytes a second that arrive after the window's first part, until the sender ends or patience does."""
    buffer = bytearray(1 << 20)
    begin = since = now = time.perf_counter()
    total = counted = 0
    while now - begin < PATIENCE * window_s:
        got = line.recv_into(buffer)
        now = time.perf_counter()
        if not got:
            break
        total += got
        if now - begin < SHARE_SKIPPED * window_s:
            since, counted = now, total
    span = now - since
    return (total - counted) / span if span > 0 else 0.0
