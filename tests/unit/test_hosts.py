"""Host names and the short way to write many."""

from __future__ import annotations

import tracemalloc

import pytest

from launch.hosts import expand


@pytest.mark.parametrize(("text", "names"), [
    ("node1", ["node1"]),
    ("node[1-3]", ["node1", "node2", "node3"]),
    ("node[08-10,2]", ["node08", "node09", "node10", "node2"]),
    ("r[1-2]n[1-2].lab.org", ["r1n1.lab.org", "r1n2.lab.org", "r2n1.lab.org", "r2n2.lab.org"]),
    ("10.0.0.1", ["10.0.0.1"]),
])
def test_expand(text: str, names: list[str]) -> None:
    assert expand(text) == names


@pytest.mark.parametrize("text", [
    "", "-oProxyCommand=x", "a b", "a\nb", "$(touch x)", "a;b", "a'b", "node[1-", "node[a]", "node[]", "user@host",
    "a-", "n[1-9999999]", "n[1-999][1-999]", "a" * 300, "host:2", "node[3-1]", "n[" + "9" * 5000 + "]",
])
def test_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"host"):
        expand(text)


@pytest.mark.parametrize("text", ["n[" + ",".join(["1-60000"] * 4) + "]", "a" * 10_000 + "[1-300]"])
def test_too_many_are_refused_before_they_are_built(text: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r"more than 65536 hosts|too long for a name of a host"):
            expand(text)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
