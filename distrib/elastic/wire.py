"""The connections of one member to all others: lines of JSON, and beats that go on while the member computes.

A thread reads and writes them all. What it hears it hands on; what that means is `distrib.elastic.members`' business.
"""

from __future__ import annotations

import contextlib
import hmac
import json
import selectors
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

_MOST_BYTES = 1 << 20
_CONNECT_S = 5.0
_HELLO_S = 10.0
"""How long a connection may be open before it says the secret."""

Word = Mapping[str, Any]


@dataclass(frozen=True)
class Place:
    """Where a member is."""

    host: str
    address: str
    port: int
    """Of its listening socket."""


@dataclass
class Peer:
    """One connection."""

    socket: socket.socket
    member: int | None = None
    """None: it has not said who it is, or one of the two is to join."""
    place: Place | None = None
    """Where the other listens, if that is known."""
    is_trusted: bool = False
    """Whether it is to a place that a member named, or has said the secret."""
    is_joining: bool = False
    finished: bool = False
    heard_at: float = field(default_factory=time.monotonic)
    received: bytes = b""
    unsent: bytes = b""


class Wire:
    """``changed`` guards all that the thread and its owner share; the callbacks are called with it held.

    ``hear``: of a word from a trusted peer; what it raises of ValueError, KeyError, TypeError and AttributeError ends
    the connection. ``gone``: of a peer whose connection has ended. ``tick``: now and then, with the time up to
    which all that had come was heard.
    """

    def __init__(self, address: str, beat_s: float, changed: threading.Condition, hear: Callable[[Peer, Word], None],
                 gone: Callable[[Peer], None], tick: Callable[[float], None]) -> None:
        self._beat_s, self._changed = beat_s, changed
        self._hear, self._on_gone, self._tick = hear, gone, tick
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self._listener = socket.create_server((address, 0), family=family, backlog=1024)
        self._listener.setblocking(False)
        self._waker, self._wake = socket.socketpair()
        self._waker.setblocking(False)
        self._selector = selectors.DefaultSelector()
        for own in (self._listener, self._waker):
            self._selector.register(own, selectors.EVENT_READ)
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="members", daemon=True)
        self.port: int = self._listener.getsockname()[1]
        self.secret = ""
        """What whoever connects must say."""
        self.peers: list[Peer] = []

    def start(self) -> None:
        """From now on connections are served."""
        self._thread.start()

    def open(self, place: Place, member: int | None, me: int, mine: Place) -> None:
        """Connect to a member, and say who this one is. Raises OSError."""
        connection = socket.create_connection((place.address, place.port), _CONNECT_S)
        peer = Peer(connection, member, place, is_trusted=True)
        with self._changed:
            self._add(peer)
            self.send(peer, {"secret": self.secret, "member": me, "place": vars(mine)})

    def send(self, peer: Peer, word: Word) -> None:
        """Never waits: what the connection does not take yet is sent by the thread."""
        peer.unsent += json.dumps(word).encode() + b"\n"
        with contextlib.suppress(OSError):
            self._flush(peer)

    def poke(self) -> None:
        """Have the thread look at once."""
        with contextlib.suppress(OSError):
            self._wake.send(b".")

    def drain(self, limit_s: float) -> None:
        """Wait until all is sent, for so long at most."""
        deadline = time.monotonic() + limit_s
        while any(peer.unsent for peer in self.peers) and time.monotonic() < deadline:
            time.sleep(0.01)

    def close(self, limit_s: float) -> None:
        """End the thread, which may take so long, and all connections."""
        self._closing = True
        self.poke()
        if self._thread.is_alive():
            self._thread.join(limit_s)
        for peer in self.peers:
            peer.socket.close()
        for own in (self._listener, self._waker, self._wake):
            own.close()

    def _run(self) -> None:
        beat_at = 0.0
        while not self._closing:
            now = time.monotonic()  # who spoke since may be unread, however long this thread stood still
            for key, events in self._selector.select(self._beat_s / 4):
                if key.fileobj is self._listener:
                    self._accept()
                elif key.fileobj is self._waker:
                    with contextlib.suppress(BlockingIOError):
                        self._waker.recv(4096)
                else:
                    self._serve(key.data, events)
            with self._changed:
                for peer in [peer for peer in self.peers if not peer.is_trusted and now > peer.heard_at + _HELLO_S]:
                    self._end(peer)
                if now >= beat_at:
                    beat_at = now + self._beat_s
                    for peer in self.peers:
                        if peer.is_trusted:
                            self.send(peer, {})
                self._tick(now)
                for peer in self.peers:
                    mask = selectors.EVENT_READ | (selectors.EVENT_WRITE if peer.unsent else 0)
                    if self._selector.get_key(peer.socket).events != mask:
                        self._selector.modify(peer.socket, mask, peer)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            connection, _ = self._listener.accept()
            with self._changed:
                self._add(Peer(connection))

    def _add(self, peer: Peer) -> None:
        peer.socket.setblocking(False)
        peer.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.peers.append(peer)
        self._selector.register(peer.socket, selectors.EVENT_READ, peer)

    def _serve(self, peer: Peer, events: int) -> None:
        with self._changed:
            try:
                if events & selectors.EVENT_WRITE:
                    self._flush(peer)
                content = peer.socket.recv(1 << 16) if events & selectors.EVENT_READ else None
            except BlockingIOError:
                return
            except OSError:
                content = b""
            if content is None:
                return
            if not content:
                self._end(peer)
                return
            if peer.is_trusted:
                peer.heard_at = time.monotonic()
            *lines, peer.received = (peer.received + content).split(b"\n")
            try:
                if len(peer.received) > _MOST_BYTES:
                    raise ValueError("too long")
                for line in lines:
                    self._take(peer, json.loads(line))
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError):  # not one of ours
                self._end(peer)

    def _take(self, peer: Peer, word: Word) -> None:
        if not peer.is_trusted:
            if not hmac.compare_digest(str(word["secret"]).encode(), self.secret.encode()):
                raise ValueError("wrong secret")
            peer.is_trusted, peer.heard_at = True, time.monotonic()
        self._hear(peer, word)

    def _end(self, peer: Peer) -> None:
        self._selector.unregister(peer.socket)
        peer.socket.close()
        self.peers.remove(peer)
        self._on_gone(peer)

    @staticmethod
    def _flush(peer: Peer) -> None:
        with contextlib.suppress(BlockingIOError):
            while peer.unsent:
                peer.unsent = peer.unsent[peer.socket.send(peer.unsent):]
