"""What unit tests share: the group of a world of one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from distrib.comm.group import Group
from distrib.world import World


@pytest.fixture
def group(monkeypatch: pytest.MonkeyPatch) -> Iterator[Group]:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    with Group(World()) as group:
        yield group
