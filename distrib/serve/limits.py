"""What the service takes on, and what it does not."""

from __future__ import annotations

import math
from dataclasses import dataclass

from distrib.errors import ConfigError

EXPLAIN_COST = 10
"""What a heat map costs of a client's rate: it asks the model 65 times."""


@dataclass(frozen=True)
class Limits:
    image_bytes: int = 20_000_000
    """Largest image file."""
    pixels: int = 50_000_000
    """Largest width times height of an image, decided before it is decoded."""
    rate: float = 20.0
    """Requests a second of one client, in the long run; 0 is any."""
    queue: int = 64
    """Images that may wait for a thread."""
    explain_queue: int = 4
    """Heat maps that may wait, besides the one in the works."""
    connections: int = 512
    """Open at a time."""
    body_grace_s: float = 10.0
    slowest_bytes_s: float = 65_536.0
    """A request's body may take ``body_grace_s``, and as long besides as its bytes take at this speed."""
    headers_s: float = 10.0
    """From a connection, or the end of its last answer, to the next request's last header."""
    answer_s: float = 120.0
    """From a body's last byte to the last byte of the answer; then the connection is cut."""
    drain_s: float = 5.0
    """How long the rest of a refused body is read away, so that its sender hears the refusal."""

    @property
    def body_bytes(self) -> int:
        """Largest body of a request: an image, and what a form adds."""
        return self.image_bytes + 65_536

    @property
    def held_bytes(self) -> int:
        """Most bytes of all requests together that are taken in and not yet answered."""
        return 16 * self.body_bytes

    @property
    def request_s(self) -> float:
        """Longest that a request may take, all in all."""
        return self.body_grace_s + self.body_bytes / self.slowest_bytes_s + self.answer_s


def check_limits(max_mb: float, max_pixels: float, rate: float, queue: int) -> Limits:
    """The limits that the command line asks for. ``max_pixels`` in millions. Raises ConfigError."""
    for option, value, low, high in (("--max-mb", max_mb, 0.01, 1000), ("--max-pixels", max_pixels, 0.01, 178),
                                     ("--rate", rate, 0, 1e9), ("--queue", queue, 1, 100_000)):
        if not (math.isfinite(value) and low <= value <= high):
            raise ConfigError(f"{option} {value:g} is not from {low:g} to {high:g}", "nothing was started",
                              "choose a number between them")
    return Limits(image_bytes=int(max_mb * 1e6), pixels=int(max_pixels * 1e6), rate=rate, queue=queue)
