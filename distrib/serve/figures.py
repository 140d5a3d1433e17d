"""What the service counts, as Prometheus reads it (text exposition format 0.0.4)."""

from __future__ import annotations

import bisect
import threading
from collections import Counter
from collections.abc import Mapping, Sequence

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_IMAGES = (1, 2, 4, 8, 16, 32, 64)


class _Histogram:
    """Counts of values by bucket, and their sum."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds, self.counts, self.total = bounds, [0] * (len(bounds) + 1), 0.0

    def add(self, value: float) -> None:
        self.counts[bisect.bisect_left(self.bounds, value)] += 1
        self.total += value

    def lines(self, name: str, label: str = "") -> list[str]:
        lines, below = [], 0
        comma = f"{label}," if label else ""
        for bound, count in zip((*map(repr, self.bounds), "+Inf"), self.counts, strict=True):
            below += count
            lines.append(f'{name}_bucket{{{comma}le="{bound}"}} {below}')
        label = f"{{{label}}}" if label else ""
        return [*lines, f"{name}_sum{label} {self.total!r}", f"{name}_count{label} {below}"]


class Figures:
    """Counters since the start; safe to call from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests: Counter[tuple[str, int]] = Counter()
        self._seconds: dict[str, _Histogram] = {}
        self._batch = _Histogram(_IMAGES)

    def request(self, path: str, code: int, seconds: float) -> None:
        """One answer. ``path`` must be one of few, or a stranger could fill the memory."""
        with self._lock:
            self._requests[path, code] += 1
            self._seconds.setdefault(path, _Histogram(_SECONDS)).add(seconds)

    def batch(self, images: int) -> None:
        """One image was begun, and so many are in the works with it."""
        with self._lock:
            self._batch.add(images)

    def text(self, gauges: Mapping[str, tuple[float, str]]) -> str:
        """All of it, and ``gauges`` {name: (value now, what it is)}."""
        with self._lock:
            lines = _head("requests_total", "counter", "Answers by path and code.")
            lines += [f'distrib_serve_requests_total{{path="{path}",code="{code}"}} {count}'
                      for (path, code), count in sorted(self._requests.items())]
            lines += _head("request_seconds", "histogram", "From a request's last header to its answer, by path.")
            for path, histogram in sorted(self._seconds.items()):
                lines += histogram.lines("distrib_serve_request_seconds", f'path="{path}"')
            lines += _head("batch_images", "histogram", "Images in the works at a time, when one is begun.")
            lines += self._batch.lines("distrib_serve_batch_images")
        for name, (value, what) in gauges.items():
            lines += [*_head(name, "gauge", what), f"distrib_serve_{name} {value:g}"]
        return "\n".join([*lines, ""])


def _head(name: str, kind: str, what: str) -> list[str]:
    return [f"# HELP distrib_serve_{name} {what}", f"# TYPE distrib_serve_{name} {kind}"]
