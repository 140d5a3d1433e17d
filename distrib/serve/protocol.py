"""uvicorn's HTTP/1.1, with an end to connections on which nothing comes or goes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from uvicorn.protocols.http.h11_impl import H11Protocol

from distrib.serve.limits import Limits


def protocol_class(limits: Limits, invalid: Callable[[], None]) -> type[H11Protocol]:
    """A class as uvicorn wants one. ``invalid`` is called where what came was no HTTP.

    uvicorn closes connections that are idle after an answer, but waits for ever for the headers of a request, and
    for a client to read its answer.
    """

    class Protocol(H11Protocol):
        _timer: asyncio.TimerHandle | None = None

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
            super().send_400_response(msg)

        def _expect(self, seconds: float | None) -> None:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = None if seconds is None else self.loop.call_later(seconds, self.transport.abort)

    return Protocol
