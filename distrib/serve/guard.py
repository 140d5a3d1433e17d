"""What stands before every endpoint: who may ask, what every answer says to browsers, the log and the count."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
import traceback
from collections.abc import Callable, Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from distrib.serve.figures import Figures
from distrib.serve.limits import Limits
from distrib.serve.protocol import CROWDED

_HEADERS = {
    "x-content-type-options": "nosniff", "cache-control": "no-store", "referrer-policy": "no-referrer",
    "x-frame-options": "DENY", "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
}
_NO_DRAIN = (408, 499)


class Guard:
    """Wraps an application. ``hosts`` are the names that it may be called by, None for any.

    An answer that does not wait for the end of the body, such as 413, reaches its sender all the same: the rest is
    read and thrown away for some seconds. Otherwise the connection would be reset under a client that still sends.
    """

    def __init__(self, app: ASGIApp, *, hosts: Collection[str] | None, policy: str, paths: Collection[str],
                 limits: Limits, figures: Figures, log: Callable[[str], None]) -> None:
        self._app, self._hosts, self._paths, self._limits = app, hosts, paths, limits
        self._figures, self._log = figures, log
        self._headers = [(name.encode(), value.encode())
                         for name, value in {**_HEADERS, "content-security-policy": policy}.items()]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        exchange = _Exchange(receive, send, self._headers)
        begin = time.perf_counter()
        headers = Headers(scope=scope)
        try:
            if (hurried := _unheard(scope, headers)) is not None:
                exchange.is_hurried = True
                await exchange.answer(*hurried)
            elif (refusal := _stranger(headers, self._hosts)) is not None:
                await exchange.answer(*refusal)
            else:
                await self._app(scope, exchange.receive, exchange.send)
        except Exception:  # a fault of ours: said here, so that the client hears of it too
            self._log(traceback.format_exc())
            if not exchange.code:
                await exchange.answer(500, "the service has a fault, which its log describes")
        finally:
            seconds = time.perf_counter() - begin
            self._figures.request(scope["path"] if scope["path"] in self._paths else "other", exchange.code, seconds)
            self._log(log_line(exchange.code, seconds))
        if "content-length" in headers or "transfer-encoding" in headers:
            await exchange.drain(self._limits.drain_s)
        await exchange.finish()


def log_line(code: int, seconds: float) -> str:
    """Time, code and latency; nothing of the image, its name or its sender."""
    return f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} {code} {seconds * 1e3:.1f} ms"


def host_name(text: str) -> str:
    """The name in a Host header or in the authority of a URL, without the port, in small letters."""
    name, colon, port = text.rpartition(":")
    return (name if colon and port.isdecimal() else text).lower().rstrip(".")


def _unheard(scope: Scope, headers: Headers) -> tuple[int, str] | None:
    """Why a request is refused and its connection closed, whatever it asks."""
    if scope.get(CROWDED):
        return 503, "as many connections are open as may be; try again soon"
    if "content-length" in headers and "transfer-encoding" in headers:
        # A proxy may see the end of this request elsewhere, and so a second one, of somebody else's, in its body.
        return 400, "the request has both Content-Length and Transfer-Encoding; send one of them"
    return None


def _stranger(headers: Headers, hosts: Collection[str] | None) -> tuple[int, str] | None:
    """Why a browser's page from elsewhere may not ask: a name of an attacker's that leads here, or another site."""
    given = headers.getlist("host")
    if hosts is not None and (len(given) != 1 or host_name(given[0]) not in hosts):
        return 421, "this service does not answer to that host name; it takes more of them with --allow-host"
    origin = headers.get("origin")
    if origin is None:
        return None
    with contextlib.suppress(ValueError):  # what is no address has no name
        name = host_name(urlsplit(origin).netloc)
        if name and name in {*(hosts or ()), *map(host_name, given)}:
            return None
    return 403, "a page of another site may not use this service; it takes more hosts with --allow-host"


class _Exchange:
    """One request and its answer, whose last message is held back until the body is dealt with."""

    def __init__(self, receive: Receive, send: Send, headers: list[tuple[bytes, bytes]]) -> None:
        self._receive, self._send, self._headers = receive, send, headers
        self._whole = self._last = False
        self.code = 0
        self.is_hurried = False
        """The connection is closed after the answer, without waiting for the rest of the body."""

    @property
    def _closes(self) -> bool:
        return self.is_hurried or self.code in _NO_DRAIN

    async def receive(self) -> Message:
        message = await self._receive()
        self._whole = message["type"] == "http.disconnect" or not message.get("more_body", False)
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.code = message["status"]
            close = [(b"connection", b"close")] if self._closes else []
            if self.code == 503 and self.is_hurried:
                close.append((b"retry-after", b"1"))
            message = {**message, "headers": [*message["headers"], *self._headers, *close]}
        elif not message.get("more_body", False):
            self._last = True
            message = {**message, "more_body": True}
        await self._send(message)

    async def answer(self, code: int, error: str) -> None:
        content = json.dumps({"error": error}).encode()
        await self.send({"type": "http.response.start", "status": code, "headers": [
            (b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]})
        await self.send({"type": "http.response.body", "body": content})

    async def drain(self, seconds: float) -> None:
        if self._closes:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not self._whole:
                    await self.receive()

    async def finish(self) -> None:
        if self._last:
            await self._send({"type": "http.response.body", "body": b"", "more_body": False})
