"""Strangers on a member's port are not listened to."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from distrib.elastic.wire import Peer, Wire, Word


class Ear:
    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.words: list[Word] = []
        self.silent_s = 0.0  # the longest that a trusted peer seemed to be
        self.wire = Wire("127.0.0.1", 0.05, self.changed, self.hear, lambda peer: None, self.tick)
        self.wire.secret = "s3cret"
        self.wire.start()

    def hear(self, peer: Peer, word: Word) -> None:
        assert peer.is_trusted
        if word:
            self.words.append(word)
        self.changed.notify_all()

    def tick(self, now: float) -> None:
        self.silent_s = max([self.silent_s, *(now - peer.heard_at for peer in self.wire.peers if peer.is_trusted)])


@pytest.fixture
def ear() -> Iterator[Ear]:
    one = Ear()
    yield one
    one.wire.close(5.0)


def is_closed_after(ear: Ear, content: bytes) -> bool:
    with socket.create_connection(("127.0.0.1", ear.wire.port), 5.0) as connection:
        connection.sendall(content)
        return not connection.recv(1)  # a trusted one would be sent beats


@pytest.mark.parametrize("content", [
    b'{"next": {"before": 0}, "you": 1}\n', b'{"finished": true}\n', b'{"secret": "", "member": 0}\n',
    b'{"secret": "s3cre\xc3\xa9", "member": 0}\n', b'["secret"]\n', b"7\n", b"GET / HTTP/1.1\r\n\r\n",
    b"\x16\x03\x01\n", b"[" * 100_000 + b"\n", b'{"secret": ' + b"9" * 5000 + b"}\n",
], ids=lambda content: content[:24].decode("latin-1"))
def test_what_strangers_say_ends_their_connection(ear: Ear, content: bytes) -> None:
    assert is_closed_after(ear, content)
    assert ear.words == []


def test_who_knows_the_secret_is_heard(ear: Ear) -> None:
    hello = {"secret": "s3cret", "member": 1}
    with socket.create_connection(("127.0.0.1", ear.wire.port), 5.0) as connection:
        connection.sendall(json.dumps(hello).encode() + b'\n{"report": 3}\n')
        with ear.changed:
            assert ear.changed.wait_for(lambda: len(ear.words) == 2, 5.0)
        assert connection.recv(1) == b"{"
    assert ear.words == [hello, {"report": 3}]


def test_a_thread_that_stood_still_takes_nobody_for_silent_whom_it_has_not_read_yet(
        ear: Ear, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when another thread keeps the interpreter, loading a library, after the selector found nothing to read."""
    selector = ear.wire._selector
    select, stood_still = selector.select, threading.Event()

    def then_stand_still(timeout: float | None = None) -> Any:
        found = select(timeout)
        if not found and ear.words and not stood_still.is_set():
            stood_still.set()
            time.sleep(1.0)
        return found

    with socket.create_connection(("127.0.0.1", ear.wire.port), 5.0) as connection:
        connection.sendall(json.dumps({"secret": "s3cret", "member": 1}).encode() + b"\n")
        monkeypatch.setattr(selector, "select", then_stand_still)
        until = time.monotonic() + 2.0
        while time.monotonic() < until:
            connection.sendall(b"{}\n")
            time.sleep(0.02)
    assert stood_still.is_set()
    assert ear.silent_s < 0.5
