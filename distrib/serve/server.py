"""uvicorn, as this service runs it."""

from __future__ import annotations

import socket
from collections.abc import Callable

import uvicorn
from starlette.types import ASGIApp

from distrib.serve.limits import Limits
from distrib.serve.protocol import protocol_class

_MOST_HEADER_BYTES = 16_384


class _Server(uvicorn.Server):
    """Says when it takes requests."""

    def __init__(self, config: uvicorn.Config, started: Callable[[], None]) -> None:
        super().__init__(config)
        self._when_started = started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._when_started()


def serve_app(app: ASGIApp, listener: socket.socket, limits: Limits, stop_s: int, invalid: Callable[[], None],
              started: Callable[[], None]) -> None:
    """Until SIGTERM or SIGINT: takes no more then, answers what it took, and raises the signal again."""
    _Server(uvicorn.Config(
        app, http=protocol_class(limits, invalid), loop="asyncio", ws="none", lifespan="off", interface="asgi3",
        log_config=None, log_level="critical", access_log=False, proxy_headers=False, server_header=False,
        h11_max_incomplete_event_size=_MOST_HEADER_BYTES,
        timeout_graceful_shutdown=stop_s), started).run(sockets=[listener])
