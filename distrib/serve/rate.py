"""How many requests a client may make: a bucket of tokens each, filled at the rate, emptied by requests."""

from __future__ import annotations

import ipaddress
import time
from collections import OrderedDict
from collections.abc import Callable

from distrib.serve.limits import EXPLAIN_COST

_SECONDS_AT_ONCE = 5
_MOST_CLIENTS = 10_000


class RateLimiter:
    """Of one thread. A full bucket holds five seconds' worth, and at least one heat map.

    The clients seen last are known, 10,000 of them: whoever comes back later begins with a full bucket.
    """

    def __init__(self, rate: float, clock: Callable[[], float] = time.monotonic,
                 most_clients: int = _MOST_CLIENTS) -> None:
        self._rate, self._clock, self._most_clients = rate, clock, most_clients
        self._full = max(rate * _SECONDS_AT_ONCE, EXPLAIN_COST)
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # client -> (tokens, as of)

    def wait_s(self, client: str, cost: float = 1.0) -> float:
        """0, with the tokens taken; or the seconds until there are enough, with none taken."""
        if not self._rate:
            return 0.0
        now = self._clock()
        tokens, since = self._buckets.pop(client, (self._full, now))
        tokens = min(self._full, tokens + (now - since) * self._rate)
        missing = max(0.0, cost - tokens)
        self._buckets[client] = (tokens if missing else tokens - cost, now)
        if len(self._buckets) > self._most_clients:
            self._buckets.popitem(last=False)
        return missing / self._rate


def client_of(address: str) -> str:
    """Who an address stands for: of IPv6 the network of 64 bits, since a host has all of its addresses."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped:
            return str(parsed.ipv4_mapped)
        return str(ipaddress.ip_network((parsed, 64), strict=False))
    return str(parsed)
