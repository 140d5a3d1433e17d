"""How fast bytes can go between two ranks at all: through TCP, and through memory."""

from __future__ import annotations

import socket
import threading
import time

import torch

from distrib.comm.group import Group

CHUNKS = (1 << 16, 1 << 18, 1 << 20)
"""Bytes of one send; which is fastest depends on caches and on who wakes whom."""
STREAM_S, TRIES = 0.5, 2


def tcp_speed(group: Group) -> float:
    """Bytes/s each way while both ranks stream to each other at once: the slower way's, in the best of some tries.

    Collective.
    """
    return max(_stream(group, chunk) for chunk in CHUNKS * TRIES)


def copy_s(size: int) -> float:
    """Seconds in which this core copies ``size`` bytes: the median of some tries."""
    source, target = torch.zeros(size, dtype=torch.uint8), torch.zeros(size, dtype=torch.uint8)
    repeats = max(1, (8 << 20) // size)
    taken = []
    for _ in range(7):
        start = time.perf_counter()
        for _ in range(repeats):
            target.copy_(source)
        taken.append((time.perf_counter() - start) / repeats)
    return sorted(taken)[len(taken) // 2]


def _stream(group: Group, chunk: int) -> float:
    with _connect(group) as connection:
        sender = threading.Thread(target=_send, args=(connection, chunk))
        sender.start()
        speed = _receive(connection, chunk)
        sender.join()
    slower = torch.tensor([-speed], dtype=torch.float64)
    group.all_reduce(slower, "max")
    return -float(slower)


def _connect(group: Group) -> socket.socket:
    address = group.world.master_addr
    if group.rank:
        return socket.create_connection((address, int(group.broadcast_bytes(None))))
    with socket.create_server((address, 0)) as server:
        group.broadcast_bytes(str(server.getsockname()[1]).encode())
        return server.accept()[0]


def _send(connection: socket.socket, chunk: int) -> None:
    content = bytes(chunk)
    end = time.perf_counter() + STREAM_S
    while time.perf_counter() < end:
        connection.sendall(content)
    connection.shutdown(socket.SHUT_WR)


def _receive(connection: socket.socket, chunk: int) -> float:
    """Bytes/s until the other end has no more."""
    buffer = bytearray(chunk)
    received = connection.recv_into(buffer)
    start = time.perf_counter()
    while count := connection.recv_into(buffer):
        received += count
    return received / (time.perf_counter() - start)
