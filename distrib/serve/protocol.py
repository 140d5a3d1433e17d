"""uvicorn's HTTP/1.1, with an end to connections on which nothing comes or goes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import h11
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from distrib.serve.limits import Limits

CROWDED = "distrib.crowded"
"""In a request's scope: whether more connections are open than may be."""


def protocol_class(limits: Limits, invalid: Callable[[], None]) -> type[H11Protocol]:
    """A class as uvicorn wants one. ``invalid`` is called where what came was no HTTP.

    uvicorn closes connections that are idle after an answer, but waits for ever for the headers of a request, and
    for a client to read its answer. What it would answer by itself, to what is no HTTP and to too many connections,
    it would answer in plain text.
    """

    class Protocol(H11Protocol):
        _timer: asyncio.TimerHandle | None = None

        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            app = self.app

            async def told(scope: Scope, receive: Receive, send: Send) -> None:
                await app({**scope, CROWDED: len(self.connections) > limits.connections}, receive, send)

            self.app = told

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._expect(limits.headers_s)

        def connection_lost(self, exc: Exception | None) -> None:
            self._expect(None)
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            before = self.cycle
            super().data_received(data)
            if self.cycle is not before and not self.cycle.response_complete:
                self._expect(limits.request_s)

        def on_response_complete(self) -> None:
            self._expect(limits.headers_s)
            done = self.cycle
            super().on_response_complete()
            if self.cycle is not done:  # the next request had come already
                self._expect(limits.request_s)

        def send_400_response(self, msg: str) -> None:
            invalid()
            if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):  # else an answer is under way: it is cut off
                content = json.dumps({"error": msg}).encode()
                for event in (h11.Response(status_code=400, headers=[
                        (b"content-type", b"application/json"), (b"content-length", str(len(content)).encode()),
                        (b"connection", b"close")]), h11.Data(data=content), h11.EndOfMessage()):
                    self.transport.write(self.conn.send(event) or b"")
            self.transport.close()

        def _expect(self, seconds: float | None) -> None:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = None if seconds is None else self.loop.call_later(seconds, self.transport.abort)

    return Protocol
