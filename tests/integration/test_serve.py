"""The service as it runs: a real process on a real port, hostile clients, and a real browser."""

from __future__ import annotations

import base64
import http.client
import io
import json
import os
import signal
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from distrib.export.run import run_export
from distrib.predict import run_predict
from tests.integration.test_export_predict import extract, make_run
from tests.rig.hostile import Upload, form, uploads
from tests.rig.served import Served, serving

CHROMIUM = Path("/usr/bin/chromium")
PNG = {"Content-Type": "image/png"}
THRESHOLD = {"value": 0.4, "positive_class": "angle1", "sensitivity": 0.9, "specificity": 0.8, "num_samples": 30}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("serve")


@pytest.fixture(scope="module")
def bundle(place: Path) -> Path:
    """Of two classes, with a threshold."""
    from tests.conftest import write_dataset

    torch.set_num_threads(1)
    dataset = write_dataset(place / "dataset", test=30, classes=2)
    run_export(make_run(place / "run", dataset, threshold=THRESHOLD), out=place / "bundle", num_samples=20)
    extract(dataset, place / "images")
    return place / "bundle"


@pytest.fixture(scope="module")
def images(bundle: Path, place: Path) -> list[Path]:
    return sorted((place / "images").iterdir())


@pytest.fixture(scope="module")
def served(bundle: Path, place: Path) -> Iterator[Served]:
    """Of no limit to its rate."""
    with serving(bundle, place, "--rate", "0") as served:
        yield served


def ask(served: Served, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None,
        ) -> tuple[int, http.client.HTTPMessage, bytes]:
    """(code, headers, body)."""
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=60)
    try:
        connection.request(method, path, body, headers or {})
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()
    finally:
        connection.close()


def answer(served: Served, path: str, body: Any = None, headers: dict[str, str] | None = None) -> dict[str, Any]:
    code, _, content = ask(served, "GET" if body is None else "POST", path, body, headers)
    assert code == 200, content
    result: dict[str, Any] = json.loads(content)
    return result


def test_answers_are_those_of_predict_to_the_last_bit(served: Served, bundle: Path, images: list[Path]) -> None:
    for image, expected in zip(images, run_predict(bundle, images), strict=True):
        raw = image.read_bytes()
        bare = answer(served, "/v1/predict", raw, PNG)
        in_a_form = answer(served, "/v1/predict", form(raw), {"Content-Type": "multipart/form-data; boundary=xyz"})
        wanted = {name: expected[name] for name in ("label", "threshold", "probabilities", "runtime")}
        assert bare == in_a_form == wanted
    labels = Counter(entry["label"] for entry in run_predict(bundle, images))
    assert len(labels) == 2


def test_a_heat_map(served: Served, images: list[Path]) -> None:
    raw = images[0].read_bytes()
    map_ = answer(served, "/v1/explain", raw, PNG)
    head, _, content = map_.pop("heat_map").partition(",")
    assert head == "data:image/png;base64"
    with Image.open(io.BytesIO(base64.b64decode(content))) as picture:
        assert picture.size == (16, 16)
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    assert -1 <= map_.pop("largest_fall") <= 1
    assert np.ptp(pixels, axis=2).max() > 0  # not all grey
    assert map_ == answer(served, "/v1/predict", raw, PNG)


def test_the_other_addresses(served: Served, images: list[Path]) -> None:
    health, model = answer(served, "/health"), answer(served, "/v1/model")
    assert health["ready"] is True
    assert health["bundle_sha256"] == model["bundle_sha256"]
    assert model["classes"] == ["angle0", "angle1"]
    assert model["threshold"]["value"] == 0.4
    assert model["limits"] == {"image_bytes": 20_000_000, "pixels": 50_000_000}
    code, headers, text = ask(served, "GET", "/metrics")
    before = [line for line in text.decode().splitlines() if 'path="/v1/predict",code="200"' in line]
    answer(served, "/v1/predict", images[0].read_bytes(), PNG)
    after = ask(served, "GET", "/metrics")[2].decode()
    count = int(before[0].split()[1]) if before else 0
    assert f'distrib_serve_requests_total{{path="/v1/predict",code="200"}} {count + 1}' in after
    code, headers, page = ask(served, "GET", "/")
    assert code == 200
    assert b"This is a research tool, not a medical device" in page
    assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
    assert headers["Cache-Control"] == "no-store"
    for method, path, wanted in (("GET", "/nope", 404), ("GET", "/v1/predict", 405), ("POST", "/health", 405),
                                 ("GET", "/docs", 404), ("GET", "/../../etc/passwd", 404)):
        code, _, content = ask(served, method, path)
        assert code == wanted
        assert json.loads(content)["error"]
    assert ask(served, "GET", "/", headers={"Host": "evil.example"})[0] == 421
    assert ask(served, "POST", "/v1/predict", b"x", {**PNG, "Origin": "https://evil.example"})[0] == 403


def send(served: Served, upload: Upload) -> int:
    body = upload.body if isinstance(upload.body, bytes) else upload.pieces()
    code, _, content = ask(served, "POST", "/v1/predict", body, {"Content-Type": upload.kind})
    assert json.loads(content)["error"]
    return code


def test_hostile_uploads_are_answered_and_survived(served: Served, images: list[Path]) -> None:
    hostile = uploads()
    assert len(hostile) >= 200
    before_mb = served.memory_mb()
    wrong = [f"{upload.what}: {code}, not {upload.codes}" for upload in hostile
             if (code := send(served, upload)) not in upload.codes]
    assert not wrong
    assert served.memory_mb() < before_mb + 500
    assert answer(served, "/v1/predict", images[0].read_bytes(), PNG)["label"]
    assert "distrib_serve_held_bytes 0" in ask(served, "GET", "/metrics")[2].decode()
    log = served.log.read_text()
    assert "Traceback" not in log
    assert "passwd" not in log
    # What is no HTTP at all.
    for raw in (b"\0" * 100, b"GET / HTTP/1.1\r\n\r\n", b"G" * 100_000, b"GET / HTTP/1.1\r\nA: " + b"b" * 100_000,
                b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n"):
        with socket.create_connection(("127.0.0.1", served.port), timeout=30) as connection:
            connection.sendall(raw)
            assert b" 400 " in connection.recv(1000).splitlines()[0]


def test_no_request_of_many_clients_is_lost(served: Served, bundle: Path, images: list[Path]) -> None:
    expected = [entry["probabilities"] for entry in run_predict(bundle, images)]

    def client(number: int) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=60)
        for turn in range(20):
            which = (number + turn) % len(images)
            connection.request("POST", "/v1/predict", images[which].read_bytes(), PNG)
            response = connection.getresponse()
            content = json.loads(response.read())
            assert response.status == 200, content
            assert content["probabilities"] == expected[which]
        connection.close()
        return 20

    with ThreadPoolExecutor(16) as pool:
        assert sum(pool.map(client, range(16))) == 320


def slow_image() -> bytes:
    """Takes some tenths of a second to decode."""
    with io.BytesIO() as file:
        Image.new("RGB", (3000, 3000)).save(file, "PNG")
        return file.getvalue()


def test_more_than_the_queue_holds_and_more_than_the_rate_is_refused(bundle: Path, place: Path) -> None:
    slow = slow_image()
    with serving(bundle, place, "--queue", "1", "--rate", "2") as served:
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda _: ask(served, "POST", "/v1/predict", slow, PNG)[:2], range(8)))
        assert {code for code, _ in answers} == {200, 503}
        assert all(int(headers["Retry-After"]) >= 1 for code, headers in answers if code == 503)
        answers = [ask(served, "POST", "/v1/predict", b"x", PNG)[:2] for _ in range(20)]
        assert 429 in {code for code, _ in answers}
        assert all(int(headers["Retry-After"]) >= 1 for code, headers in answers if code == 429)
        assert ask(served, "GET", "/health")[0] == 200


IMPATIENT = """
import json, sys
from pathlib import Path
from distrib.entry import tell
from distrib.serve.limits import Limits
from distrib.serve.run import run_serve
run_serve(Path(sys.argv[1]), Limits(headers_s=0.5, body_grace_s=0.5, slowest_bytes_s=1e9, drain_s=0.5), port=0,
          ready=lambda about: print(json.dumps(about), flush=True), tell=tell)
"""


def test_clients_slow_as_treacle_are_given_up(bundle: Path, place: Path) -> None:
    with serving(bundle, place, argv=[sys.executable, "-c", IMPATIENT, str(bundle)]) as served:
        head = b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\nContent-Length: 1000\r\n"
        # Nothing, a part of the headers, and one header after the other: cut off.
        for first, drip in ((b"", b""), (head, b""), (head, b"A: b\r\n")):
            with socket.create_connection(("127.0.0.1", served.port), timeout=30) as connection:
                connection.sendall(first)
                assert is_cut(connection, drip)
        # A body that begins: said in words.
        for drip in (b"", b"x"):
            with socket.create_connection(("127.0.0.1", served.port), timeout=30) as connection:
                connection.sendall(head + b"\r\nbegin")
                assert is_cut(connection, drip, b" 408 ")
        # A refused body that never ends, on a connection that is to be kept.
        with socket.create_connection(("127.0.0.1", served.port), timeout=30) as connection:
            connection.sendall(head.replace(b"image/png", b"text/plain") + b"\r\n")
            assert is_cut(connection, b"x", b" 415 ")
        assert ask(served, "GET", "/health")[0] == 200


def is_cut(connection: socket.socket, drip: bytes, answer: bytes = b"") -> bool:
    """Whether the other side ends it, after an answer, while ``drip`` is sent again and again."""
    got = b""
    connection.settimeout(0.1)
    for _ in range(300):
        try:
            if drip:
                connection.sendall(drip)
            more = connection.recv(4096)
            if not more:
                return answer in got
            got += more
            time.sleep(0.05)
        except TimeoutError:
            continue
        except (ConnectionResetError, BrokenPipeError):
            return answer in got
    return False


def test_what_was_taken_in_is_answered_after_a_signal(bundle: Path, place: Path) -> None:
    slow = slow_image()
    with serving(bundle, place, "--rate", "0") as served:
        with ThreadPoolExecutor(6) as pool:
            asked = [pool.submit(ask, served, "POST", "/v1/predict", slow, PNG) for _ in range(6)]
            while "distrib_serve_queue_images 4" not in ask(served, "GET", "/metrics")[2].decode():
                assert not any(future.done() for future in asked)
            served.process.send_signal(signal.SIGTERM)
            assert [future.result()[0] for future in asked] == [200] * 6
        assert served.process.wait(60) == 128 + signal.SIGTERM
        with pytest.raises(ConnectionRefusedError):
            ask(served, "GET", "/health")
        assert "Traceback" not in served.log.read_text()


def test_ctrl_c_ends_it_and_a_wide_address_is_told(bundle: Path, place: Path) -> None:
    with serving(bundle, place, "--host", "0.0.0.0") as served:
        assert ask(served, "GET", "/", headers={"Host": "any.example"})[0] == 200
        served.process.send_signal(signal.SIGINT)
        assert served.process.wait(60) == 128 + signal.SIGINT
        log = served.log.read_text()
        assert "neither passwords nor encryption" in log
        assert "Traceback" not in log


def test_requests_that_end_early_leave_nothing_behind(served: Served) -> None:
    head = (b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\n"
            b"Content-Length: 10000000\r\n\r\n")
    threads = threading.active_count()
    for _ in range(20):
        with socket.create_connection(("127.0.0.1", served.port), timeout=30) as connection:
            connection.sendall(head + bytes(1_000_000))
    for _ in range(100):
        if "distrib_serve_held_bytes 0" in ask(served, "GET", "/metrics")[2].decode():
            break
        time.sleep(0.05)
    assert "distrib_serve_held_bytes 0" in ask(served, "GET", "/metrics")[2].decode()
    assert threading.active_count() == threads


DROP = """([name, kind, encoded]) => {
  const transfer = new DataTransfer();
  transfer.items.add(new File([Uint8Array.from(atob(encoded), (c) => c.charCodeAt(0))], name, { type: kind }));
  return transfer;
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if not CHROMIUM.exists():
        assert os.environ.get("CI") != "true"
        pytest.skip("chromium is not installed")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


def test_the_page_in_a_browser(served: Served, bundle: Path, images: list[Path], browser: Any, tmp_path: Path) -> None:
    expected = run_predict(bundle, images[:3])
    page = browser.new_page(viewport={"width": 360, "height": 740})
    asked, faults = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: faults.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.goto(served.url)
    page.get_by_text("It tells apart: angle0, angle1").wait_for()
    assert page.get_by_text("This is a research tool, not a medical device.").is_visible()

    # Dropped, with a name that would be markup.
    name = '<img src=x onerror="document.title=1">.png'
    encoded = base64.b64encode(images[0].read_bytes()).decode()
    page.dispatch_event("#drop", "drop", {"dataTransfer": page.evaluate_handle(DROP, [name, "image/png", encoded])})
    article = page.locator("article").first
    article.locator(".answer").wait_for()
    assert article.locator("h2").inner_text() == name
    assert article.locator(".answer").inner_text() == expected[0]["label"]
    for class_name, probability in expected[0]["probabilities"].items():
        bar = article.get_by_role("img", name=f"probability of {class_name}: {probability:.4f}")
        width = bar.locator(".bar").evaluate("bar => bar.clientWidth / bar.parentElement.clientWidth")
        assert abs(width - probability) < 0.02
    assert article.locator(".mark").count() == 1
    assert "at least 0.4000" in article.inner_text()
    assert "sensitivity" in article.inner_text()

    # The heat map, by the keyboard alone.
    button = article.get_by_role("button", name="Show where the answer comes from")
    button.focus()
    page.keyboard.press("Enter")
    heat_map = article.get_by_role("img", name="Heat map over the image")
    heat_map.wait_for()
    assert heat_map.evaluate("image => image.complete && image.naturalWidth") == 16
    assert "not that the answer is right" in article.inner_text()

    # Several by the file picker, one of them broken: the newest stands first.
    broken = tmp_path / "broken.png"
    broken.write_bytes(images[0].read_bytes()[:50])
    page.set_input_files("#files", [images[1], broken, images[2]])
    page.locator("article").nth(3).wait_for()
    articles = page.locator("article")
    articles.nth(0).locator(".answer").wait_for()
    assert articles.nth(0).locator(".answer").inner_text() == expected[2]["label"]
    assert articles.nth(2).locator(".answer").inner_text() == expected[1]["label"]
    error = articles.nth(1).get_by_role("alert").inner_text()
    assert error.startswith("The image is a damaged PNG: it is cut off")

    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert all(url.startswith((served.url, "data:", "blob:")) for url in asked)
    assert [fault for fault in faults if "422" not in fault] == []
    page.screenshot(path=tmp_path / "page.png", full_page=True)

    # The file picker is reached by the Tab key.
    page.reload()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "files"
    page.close()


def test_the_page_says_in_words_that_the_service_is_gone(bundle: Path, place: Path, images: list[Path],
                                                         browser: Any) -> None:
    with serving(bundle, place) as served:
        page = browser.new_page()
        page.goto(served.url)
        page.get_by_text("It tells apart").wait_for()
        assert served.stop() == 128 + signal.SIGTERM
        page.set_input_files("#files", images[0])
        assert "can not be reached" in page.get_by_role("alert").inner_text()
        page.close()
