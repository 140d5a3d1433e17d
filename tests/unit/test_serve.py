"""The parts of the service: limits, rates, queue, body, counts, and who may ask."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError
from typing import Any

import pytest
import uvicorn
from starlette.requests import Request
from starlette.types import Message, Receive, Scope, Send

from distrib.errors import ConfigError
from distrib.serve.body import Room, taken_in
from distrib.serve.figures import Figures
from distrib.serve.guard import Guard, host_name, log_line
from distrib.serve.limits import EXPLAIN_COST, Limits, check_limits
from distrib.serve.page import policy, read_page
from distrib.serve.protocol import CROWDED, protocol_class
from distrib.serve.rate import RateLimiter, client_of
from distrib.serve.refusal import RefusedError
from distrib.serve.run import allowed_hosts
from distrib.serve.workers import QueueFullError, Workers

LIMITS = Limits(image_bytes=1000, body_grace_s=0.2, slowest_bytes_s=1e9)


@pytest.mark.parametrize(("option", "values"), [
    ("--max-mb", (0, 50, 20, 64)), ("--max-mb", (float("nan"), 50, 20, 64)), ("--max-pixels", (20, 200, 20, 64)),
    ("--rate", (20, 50, -1, 64)), ("--rate", (20, 50, float("inf"), 64)), ("--queue", (20, 50, 20, 0)),
])
def test_limits_that_are_none(option: str, values: tuple[float, float, float, int]) -> None:
    with pytest.raises(ConfigError, match=option):
        check_limits(*values)


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_client_may_ask_at_its_rate_and_a_burst_at_once() -> None:
    clock = Clock()
    limiter = RateLimiter(4, clock)
    assert [limiter.wait_s("a") for _ in range(20)] == [0.0] * 20
    assert limiter.wait_s("a") == pytest.approx(0.25)
    assert limiter.wait_s("b") == 0
    clock.now += 0.25
    assert limiter.wait_s("a") == 0
    assert limiter.wait_s("a", cost=10) == pytest.approx(2.5)
    clock.now += 3600
    assert [limiter.wait_s("a") > 0 for _ in range(21)] == [False] * 20 + [True]


def test_a_slow_rate_still_lets_a_heat_map_through() -> None:
    limiter = RateLimiter(0.1, Clock())
    assert limiter.wait_s("a", EXPLAIN_COST) == 0
    assert limiter.wait_s("a") == pytest.approx(10)
    assert RateLimiter(0, Clock()).wait_s("a", 1e9) == 0


def test_few_clients_are_remembered() -> None:
    limiter = RateLimiter(2, Clock(), most_clients=2)
    for client in ("a", "b", "a", "c"):
        assert limiter.wait_s(client, 6) == 0 or client == "a"
    assert limiter.wait_s("a", 6) > 0  # was seen after b
    assert limiter.wait_s("b", 6) == 0  # was forgotten


def test_whom_an_address_stands_for() -> None:
    assert client_of("10.1.2.3") == "10.1.2.3"
    assert client_of("2001:db8:1:2:3:4:5:6") == client_of("2001:db8:1:2::1") != client_of("2001:db8:1:3::1")
    assert client_of("::ffff:10.1.2.3") == "10.1.2.3"
    assert client_of("fe80::1%eth0") == client_of("fe80::2")
    assert client_of("somewhere") == "somewhere"


def blocked(workers: Workers, threads: int) -> threading.Event:
    """Keeps all threads busy until it is set."""
    begun, go = threading.Barrier(threads + 1), threading.Event()

    def job() -> None:
        begun.wait(10)
        go.wait(10)

    for _ in range(threads):
        workers.submit(job)
    begun.wait(10)
    return go


def test_the_queue_is_bounded_and_the_background_goes_last() -> None:
    busy: list[int] = []
    workers = Workers(1, 2, busy.append)
    go = blocked(workers, 1)
    done: list[str] = []
    background = [workers.submit(lambda: done.append("background"), background=True) for _ in range(5)]
    jobs = [workers.submit(lambda: done.append("job")) for _ in range(2)]
    assert (workers.full, workers.waiting) == (True, 2)
    with pytest.raises(QueueFullError):
        workers.submit(lambda: None)
    go.set()
    for future in (*jobs, *background):
        future.result(10)
    assert done == ["job"] * 2 + ["background"] * 5
    assert (workers.full, workers.waiting) == (False, 0)
    assert set(busy) == {1}
    workers.close()


def test_closing_does_what_waits_and_drops_the_background() -> None:
    workers = Workers(2, 10)
    go = blocked(workers, 2)
    waiting, background = workers.submit(lambda: 7), workers.submit(lambda: 8, background=True)
    threading.Timer(0.05, go.set).start()
    workers.close()
    assert waiting.result(0) == 7
    for dropped in (background, workers.submit(lambda: 9)):
        with pytest.raises(CancelledError):
            dropped.result(0)


def test_an_error_of_a_job_reaches_who_waits_and_ends_no_thread() -> None:
    workers = Workers(1, 10)
    with pytest.raises(ZeroDivisionError):
        workers.submit(lambda: 1 // 0).result(10)
    assert workers.submit(lambda: 3).result(10) == 3
    workers.close()


def read(chunks: Sequence[bytes], headers: dict[str, str], limits: Limits = LIMITS, room: Room | None = None,
         end: bool = True) -> bytes:
    """What `taken_in` makes of a body."""
    room = room or Room(limits.held_bytes)
    before = room.used
    messages: list[Message] = [{"type": "http.request", "body": chunk, "more_body": not end or i + 1 < len(chunks)}
                               for i, chunk in enumerate(chunks)]

    async def receive() -> Message:
        if messages:
            return messages.pop(0)
        await asyncio.sleep(60)
        raise AssertionError

    async def run() -> bytes:
        scope = {"type": "http", "headers": [(name.encode(), value.encode()) for name, value in headers.items()]}
        async with taken_in(Request(scope, receive), limits, room) as image:
            assert room.used == before + sum(map(len, chunks))
            return image

    try:
        return asyncio.run(run())
    finally:
        assert room.used == before


def refused(code: int, *arguments: Any, **options: Any) -> str:
    with pytest.raises(RefusedError) as caught:
        read(*arguments, **options)
    assert caught.value.code == code, caught.value.message
    return caught.value.message


PNG = {"content-type": "image/png"}
FORM = {"content-type": "multipart/form-data; boundary=xyz"}


def form(*parts: bytes, name: bytes = b'form-data; name="image"; filename="<b>Jane Doe</b>.png"') -> bytes:
    head = b"--xyz\r\nContent-Disposition: " + name + b"\r\nContent-Type: image/png\r\n\r\n"
    return b"".join(head + part + b"\r\n" for part in parts) + b"--xyz--\r\n"


def test_an_image_comes_bare_or_in_a_form_however_it_is_cut() -> None:
    image = bytes(range(256)) + b"\r\n--xy\r\n--" + b"\r\n"
    assert read([image], PNG) == image
    assert read([image], {"content-type": "application/octet-stream"}) == image
    for size in (1, 2, 7, 64, 10_000):
        body = form(image)
        assert read([body[i:i + size] for i in range(0, len(body), size)], FORM) == image


def test_forms_that_can_not_be_read() -> None:
    assert "named `image`" in refused(400, [form(b"a", name=b'form-data; name="file"')], FORM)
    assert "several fields" in refused(400, [form(b"a", b"b")], FORM)
    assert "no field" in refused(400, [b"--xyz--\r\n"], FORM)
    assert "last boundary" in refused(400, [form(b"a")[:-8]], FORM)
    refused(400, [form(b"a")], {"content-type": "multipart/form-data"})
    refused(400, [form(b"a")], {"content-type": "multipart/form-data; boundary=" + "x" * 300})
    refused(400, [b"what is this"], FORM)
    refused(400, [form(b"a", name=b'form-data; name="' + b"n" * 100_000 + b'"')], FORM, Limits())
    refused(400, [b"--xyz\r\n" + b"A: b\r\n" * 1000 + b"\r\n--xyz--\r\n"], FORM)


def test_what_is_no_image_by_its_own_account() -> None:
    for headers in ({}, {"content-type": "text/html"}, {"content-type": ""}, {**PNG, "content-encoding": "gzip"}):
        refused(415, [b"x"], headers)


def test_bytes_are_counted_as_they_come() -> None:
    assert len(read([b"x" * 1000], PNG)) == 1000
    refused(413, [b"x" * 1001], PNG)
    refused(413, [b"x" * 400] * 3, {**PNG, "content-length": "5"})  # what the header says is not believed
    refused(413, [form(b"x" * 1001)], FORM)
    refused(413, [], {**PNG, "content-length": "100000"})  # but where it says too much, nothing is read
    refused(413, [b"\r\n" * 40_000], FORM)
    room = Room(LIMITS.held_bytes)
    room.take(room.limit - 10)
    refused(503, [b"x" * 11], PNG, room=room)
    assert read([b"x" * 10], PNG, room=room) == b"x" * 10


def test_a_body_that_does_not_come_is_given_up() -> None:
    assert "too slowly: 3 bytes" in refused(408, [b"abc"], PNG, end=False)


def test_the_counts_as_prometheus_reads_them() -> None:
    figures = Figures()
    for seconds in (0.003, 0.03, 100.0):
        figures.request("/v1/predict", 200, seconds)
    figures.request("other", 404, 0.001)
    figures.batch(2)
    lines = figures.text({"queue_images": (3, "Images that wait.")}).splitlines()
    assert 'distrib_serve_requests_total{path="/v1/predict",code="200"} 3' in lines
    assert 'distrib_serve_request_seconds_bucket{path="/v1/predict",le="0.05"} 2' in lines
    assert 'distrib_serve_request_seconds_bucket{path="/v1/predict",le="+Inf"} 3' in lines
    assert 'distrib_serve_request_seconds_count{path="/v1/predict"} 3' in lines
    assert 'distrib_serve_batch_images_bucket{le="1"} 0' in lines
    assert 'distrib_serve_batch_images_bucket{le="2"} 1' in lines
    assert "distrib_serve_queue_images 3" in lines
    sample = re.compile(r'[a-z_]+(\{[a-z]+="[^"]+"(,[a-z]+="[^"]+")*\})? [0-9.e+-]+')
    assert all(line.startswith("# ") or sample.fullmatch(line) for line in lines)


def test_names_that_are_answered_to() -> None:
    assert allowed_hosts("0.0.0.0", False, []) is None
    own = {"localhost", "127.0.0.1", "[::1]"}
    assert set(allowed_hosts("127.0.0.1", True, ["Scan.Example"]) or ()) == {*own, "scan.example"}
    assert "[::2]" in (allowed_hosts("::2", False, ["x"]) or ())
    for text, name in (("LocalHost:80", "localhost"), ("[::1]:80", "[::1]"), ("[::1]", "[::1]"), ("a.b.", "a.b")):
        assert host_name(text) == name


def asked(headers: list[tuple[bytes, bytes]], hosts: set[str] | None, app: Callable[..., Any], *,
          is_crowded: bool = False, closes: bool = False) -> tuple[int, list[str]]:
    """(code, the log)."""
    log: list[str] = []
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        sent.append(message)

    guard = Guard(app, hosts=hosts, policy="default-src 'none'", paths=(), limits=LIMITS, figures=Figures(),
                  log=log.append)
    asyncio.run(guard({"type": "http", "path": "/Jane-Doe", "headers": headers, CROWDED: is_crowded}, receive,
                      send))
    assert ((b"connection", b"close") in sent[0]["headers"]) == closes
    assert sent[-1] == {"type": "http.response.body", "body": b"", "more_body": False}
    assert (b"x-content-type-options", b"nosniff") in sent[0]["headers"]
    assert (b"content-security-policy", b"default-src 'none'") in sent[0]["headers"]
    assert not any("Jane" in line for line in log)
    return sent[0]["status"], log


async def fine(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"fine"})


async def faulty(scope: Scope, receive: Receive, send: Send) -> None:
    raise ZeroDivisionError


@pytest.mark.parametrize(("host", "origin", "hosts", "code"), [
    ("localhost:8000", None, {"localhost"}, 200),
    ("evil.example", None, {"localhost"}, 421),
    (None, None, {"localhost"}, 421),
    ("evil.example", None, None, 200),
    ("localhost:8000", "http://localhost:8000", {"localhost"}, 200),
    ("localhost:8000", "http://evil.example", {"localhost"}, 403),
    ("localhost:8000", "null", {"localhost"}, 403),
    ("localhost:8000", "http://[zz", {"localhost"}, 403),
    ("inner:8000", "https://scan.example", {"inner", "scan.example"}, 200),
    ("inner:8000", "https://scan.example", None, 403),
])
def test_who_may_ask(host: str | None, origin: str | None, hosts: set[str] | None, code: int) -> None:
    headers = [(name, value.encode()) for name, value in ((b"host", host), (b"origin", origin)) if value is not None]
    answer, log = asked(headers, hosts, fine)
    assert answer == code
    assert re.fullmatch(rf"\d{{4}}-\d\d-\d\dT\d\d:\d\d:\d\dZ {code} [\d.]+ ms", log[-1])


def test_what_is_refused_unheard_closes_the_connection() -> None:
    twice = [(b"content-length", b"4"), (b"transfer-encoding", b"chunked")]  # two proxies would see two ends of it
    assert asked(twice, None, fine, closes=True)[0] == 400
    assert asked([], None, fine, is_crowded=True, closes=True)[0] == 503
    for one in twice:
        assert asked([one], None, fine)[0] == 200


def test_what_is_no_http_is_answered_in_json_unless_an_answer_is_under_way() -> None:
    async def talk(*pieces: bytes) -> bytes:
        loop, faults = asyncio.get_running_loop(), list[Any]()
        loop.set_exception_handler(lambda _, context: faults.append(context))

        async def slow(scope: Scope, receive: Receive, send: Send) -> None:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            while (await receive())["type"] != "http.disconnect":
                pass

        config = uvicorn.Config(slow, lifespan="off", log_config=None)
        config.load()
        make = protocol_class(LIMITS, lambda: None)
        server = await loop.create_server(lambda: make(config, uvicorn.server.ServerState(), {}), "127.0.0.1", 0)
        async with server:
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            for piece in pieces:
                writer.write(piece)
                await asyncio.sleep(0.05)
            said = await reader.read()
            writer.close()
        assert not faults
        return said

    assert b'{"error": "Invalid HTTP request received."}' in asyncio.run(talk(b"no\r\n\r\n"))
    begun = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"
    assert b"400" not in asyncio.run(talk(begun, b"no chunk\r\n\r\n"))


def test_a_fault_of_ours_is_answered_and_described_in_the_log() -> None:
    code, log = asked([], None, faulty)
    assert code == 500
    assert "ZeroDivisionError" in log[0]
    assert log_line(500, 0.25).endswith(" 500 250.0 ms")


def test_the_page_needs_nothing_from_elsewhere_and_allows_nothing_else() -> None:
    html, rules = read_page()
    assert not re.findall(r"(?:https?:)?//[a-z]", html)
    assert "innerHTML" not in html
    assert "insertAdjacentHTML" not in html
    assert "This is a research tool, not a medical device" in html
    assert not re.findall(r"\bstyle=|\bon[a-z]+=", html)
    assert "unsafe" not in rules
    assert "frame-ancestors 'none'" in rules
    assert policy("<script>a</script>") != policy("<script>b</script>")
