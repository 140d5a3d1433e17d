"""`distrib serve` under load and under attack: requests lost, latencies, throughput, memory.

The clients run beside the service on the same cores, so the throughput is a lower bound. Three scenes: many clients at
once, hostile uploads, and both together, which says whether honest clients notice.
"""

from __future__ import annotations

import argparse
import http.client
import io
import json
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from timing import note, show

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from PIL import Image  # noqa: E402

from tests.rig.hostile import Upload, uploads  # noqa: E402
from tests.rig.served import Served, serving  # noqa: E402

IMAGE = {"Content-Type": "image/jpeg"}


def photo(number: int, width: int = 600, height: int = 450) -> bytes:
    """A JPEG of soft noise, of the size of a dermatoscope's."""
    rng = np.random.default_rng(number)
    small = Image.fromarray(rng.integers(0, 256, (height // 10, width // 10, 3), dtype=np.uint8))
    with io.BytesIO() as file:
        small.resize((width, height), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
        return file.getvalue()


def load(served: Served, requests: int, clients: int) -> dict[str, Any]:
    """Every client sends its share, one after the other, on a connection of its own."""
    photos = [photo(number) for number in range(8)]
    seconds: list[float] = []
    codes: Counter[int] = Counter()
    lock = threading.Lock()

    def client(number: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=120)
        for turn in range(number, requests, clients):
            begin = time.perf_counter()
            connection.request("POST", "/v1/predict", photos[turn % len(photos)], IMAGE)
            response = connection.getresponse()
            content = json.loads(response.read())
            taken = time.perf_counter() - begin
            with lock:
                seconds.append(taken)
                codes[response.status if "label" in content or "error" in content else 0] += 1
        connection.close()

    begin = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        for _ in pool.map(client, range(clients)):
            pass
    elapsed = time.perf_counter() - begin
    p50, p99 = np.percentile(seconds, [50, 99]) * 1e3
    return {"requests": requests, "clients": clients, "answered": len(seconds), "codes": dict(codes),
            "p50_ms": float(p50), "p99_ms": float(p99), "max_ms": max(seconds) * 1e3,
            "requests_per_s": requests / elapsed}


def attack(served: Served, hostile: list[Upload]) -> dict[str, Any]:
    codes: Counter[int] = Counter()
    for upload in hostile:
        connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=120)
        connection.request("POST", "/v1/predict", upload.body if isinstance(upload.body, bytes) else upload.pieces(),
                           {"Content-Type": upload.kind})
        response = connection.getresponse()
        response.read()
        codes[response.status] += 1
        connection.close()
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=120)
    connection.request("GET", "/health")
    alive = connection.getresponse().status == 200
    connection.close()
    return {"uploads": len(hostile), "codes": dict(sorted(codes.items())), "alive": alive}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--runtime")
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--clients", type=int, default=16)
    options = parser.parse_args()
    more = ["--runtime", options.runtime] if options.runtime else []
    with tempfile.TemporaryDirectory() as folder, serving(options.bundle, Path(folder), "--rate", "0", *more) as served:
        load(served, options.clients, options.clients)
        start_mb = served.memory_mb()
        note("load")
        first = load(served, options.requests, options.clients)
        show(f"load: {_words(first)}; memory {start_mb:.0f} MB before, {served.memory_mb():.0f} MB at most")
        note("attack")
        hostile = uploads()
        done = attack(served, hostile)
        show(f"attack: {done['uploads']} uploads, codes {done['codes']}, alive afterwards: {done['alive']}; "
             f"memory {served.memory_mb():.0f} MB at most, {served.memory_mb('VmRSS'):.0f} MB after")
        note("both")
        with ThreadPoolExecutor(1) as pool:
            attacked = pool.submit(attack, served, hostile)
            both = load(served, options.requests, options.clients)
            attacked.result()
        show(f"load under attack: {_words(both)}; memory {served.memory_mb():.0f} MB at most")


def _words(result: dict[str, Any]) -> str:
    return (f"{result['requests']} requests from {result['clients']} clients, {result['answered']} answered, "
            f"codes {result['codes']}, p50 {result['p50_ms']:.0f} ms, p99 {result['p99_ms']:.0f} ms, "
            f"largest {result['max_ms']:.0f} ms, {result['requests_per_s']:.0f} requests/s")


if __name__ == "__main__":
    main()
