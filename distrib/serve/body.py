"""From a request's body to the bytes of one image, in memory alone and never more of it than is allowed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from distrib.serve.limits import Limits
from distrib.serve.refusal import RefusedError

_FIELD = b"image"
_CLOSED = 499
"""The client went away: no code of HTTP's, nobody reads it; what the log says."""


class Room:
    """The bytes of all requests together that are in memory. Of one thread."""

    def __init__(self, limit: int) -> None:
        self.limit, self.used = limit, 0

    def take(self, count: int) -> None:
        """Raises RefusedError, with nothing taken."""
        if self.used + count > self.limit:
            raise RefusedError(503, "as many bytes of images are in memory as may be; try again soon", 1)
        self.used += count

    def give_back(self, count: int) -> None:
        self.used -= count


@asynccontextmanager
async def taken_in(request: Request, limits: Limits, room: Room) -> AsyncIterator[bytes]:
    """The image in the body: a form with the one field `image`, or the bare file. Raises RefusedError."""
    collector = _collector(request, limits)
    received = 0
    try:
        if _declared(request) > limits.body_bytes:
            raise _too_large(limits)
        begin = asyncio.get_running_loop().time()
        more = True
        while more:
            try:
                async with asyncio.timeout_at(begin + limits.body_grace_s + received / limits.slowest_bytes_s):
                    message = await request.receive()
            except TimeoutError:
                raise RefusedError(408, f"the image came too slowly: {received} bytes so far; try again over a faster "
                                        "connection, or make the image smaller") from None
            if message["type"] == "http.disconnect":
                raise RefusedError(_CLOSED, "the client went away")
            chunk, more = message.get("body", b""), message.get("more_body", False)
            if received + len(chunk) > limits.body_bytes:
                raise _too_large(limits)
            room.take(len(chunk))
            received += len(chunk)
            collector.write(chunk)
        yield collector.image()
    finally:
        room.give_back(received)


def _declared(request: Request) -> int:
    """What the header says; 0 where it says nothing. Only good for refusing early."""
    text = request.headers.get("content-length", "0")
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 20 else 0


def _too_large(limits: Limits) -> RefusedError:
    return RefusedError(413, f"the image is larger than the {limits.image_bytes / 1e6:g} MB accepted; make it smaller")


def _collector(request: Request, limits: Limits) -> _Bare | _Form:
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise RefusedError(415, "the body is compressed; send the image as it is, without Content-Encoding")
    kind, options = parse_options_header(request.headers.get("content-type"))
    if kind.startswith(b"image/") or kind == b"application/octet-stream":
        return _Bare(limits)
    if kind == b"multipart/form-data":
        return _Form(options.get(b"boundary", b""), limits)
    raise RefusedError(415, "the body is neither an image nor a form: send the file with Content-Type image/jpeg, "
                            "image/png or the like, or as the field `image` of multipart/form-data")


class _Bare:
    """The body is the file."""

    def __init__(self, limits: Limits) -> None:
        self._limits, self._content = limits, bytearray()

    def write(self, chunk: bytes) -> None:
        self._content += chunk
        if len(self._content) > self._limits.image_bytes:
            raise _too_large(self._limits)

    def image(self) -> bytes:
        return bytes(self._content)


class _Form:
    """The body is a form; its parser works on each chunk as it comes. The file's name is not looked at."""

    def __init__(self, boundary: bytes, limits: Limits) -> None:
        self._image = _Bare(limits)
        self._parts, self._ended, self._name, self._disposition = 0, False, b"", b""
        try:
            self._parser = MultipartParser(boundary, {
                "on_part_begin": self._part, "on_part_data": self._data, "on_header_begin": self._header,
                "on_header_field": self._header_name, "on_header_value": self._header_value,
                "on_headers_finished": self._headers, "on_end": self._end})
        except FormParserError as error:
            raise _bad_form(str(error)) from error
        if not boundary:
            raise _bad_form("its boundary is missing")

    def write(self, chunk: bytes) -> None:
        try:
            self._parser.write(chunk)
        except FormParserError as error:
            raise _bad_form(str(error)) from error

    def image(self) -> bytes:
        if not self._ended:
            raise _bad_form("it ends before its last boundary")
        if not self._parts:
            raise _bad_form("it has no field")
        return self._image.image()

    def _part(self) -> None:
        self._parts += 1
        if self._parts > 1:
            raise _bad_form("it has several fields or files; send one image a request")
        self._disposition = b""

    def _header(self) -> None:
        self._name = b""

    def _header_name(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        if self._name.lower() == b"content-disposition":
            self._disposition += data[start:end]

    def _headers(self) -> None:
        _, options = parse_options_header(self._disposition)
        if options.get(b"name") != _FIELD:
            raise _bad_form("its field is not named `image`")

    def _data(self, data: bytes, start: int, end: int) -> None:
        self._image.write(data[start:end])

    def _end(self) -> None:
        self._ended = True


def _bad_form(why: str) -> RefusedError:
    return RefusedError(400, f"the form can not be read: {why.rstrip('.')}")
