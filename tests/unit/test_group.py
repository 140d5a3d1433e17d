from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from typing import Any, get_args

import numpy as np
import pytest
import torch
import torch.distributed as dist

from distrib.comm.gloo import prepare
from distrib.comm.group import Group
from distrib.comm.table import BACKENDS, prepare_backend
from distrib.config import CommConfig
from distrib.errors import ConfigError, WorldError
from distrib.world import World


@pytest.fixture(autouse=True)
def _loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")


@pytest.fixture
def group() -> Iterator[Group]:
    with Group(World()) as group:
        yield group


@pytest.mark.parametrize("operation", ["sum", "max"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int32, torch.int64])
def test_alone_every_sum_is_its_own(group: Group, operation: str, dtype: torch.dtype) -> None:
    values = torch.arange(-3, 3).to(dtype)
    tensor = values.clone()
    group.all_reduce(tensor, operation)  # type: ignore[arg-type]
    assert torch.equal(tensor, values)
    pending = group.start_all_reduce(tensor)
    pending.wait()
    assert torch.equal(tensor, values)


def test_alone_everything_comes_from_rank_0(group: Group) -> None:
    assert (group.rank, group.size) == (0, 1)
    tensor = torch.randn(3)
    before = tensor.clone()
    group.broadcast([tensor])
    assert torch.equal(tensor, before)
    for content in (b"", b"null", bytes(range(256))):
        assert group.broadcast_bytes(content) == content
    with pytest.raises(AssertionError):
        group.broadcast_bytes(None)


def test_a_sum_of_arrays_is_a_new_array(group: Group) -> None:
    values = np.arange(6, dtype=np.float32)
    total = group.sum_over_ranks(values)
    np.testing.assert_array_equal(total, values)
    total += 1
    assert values[0] == 0


def test_alone_all_rows_are_the_own_one(group: Group) -> None:
    row = np.array([0.1, np.nan, -np.inf, 5e-324])
    np.testing.assert_array_equal(group.rows_of_all(row), row[None])


def test_leaving_destroys_the_group_and_another_may_follow() -> None:
    for _ in range(2):
        with Group(World()):
            assert dist.is_initialized()
        assert not dist.is_initialized()
    with pytest.raises(KeyError), Group(World()):
        raise KeyError("whatever happens inside")
    assert not dist.is_initialized()


def test_an_unknown_backend_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"comm\.backend = 'smoke' is unknown") as caught:
        prepare_backend("smoke", World())
    assert "gloo" in caught.value.remedy


@pytest.mark.parametrize(("address", "interface"), [("127.0.0.1", "lo"), ("localhost", "lo"), ("::1", "lo"),
                                                    ("10.0.0.1", None), ("node7", None)])
def test_ranks_that_meet_on_loopback_talk_over_it(address: str, interface: str | None,
                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GLOO_SOCKET_IFNAME")
    assert prepare(World(master_addr=address)) == "gloo"
    assert os.environ.get("GLOO_SOCKET_IFNAME") == interface
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth7")
    prepare(World(master_addr=address))
    assert os.environ["GLOO_SOCKET_IFNAME"] == "eth7"  # a choice of the site's stays


def test_ranks_that_never_come_are_a_world_error() -> None:
    alone = World(0, 2, 0, 2, "127.0.0.1", 0, "node7")  # port 0: any that is free, which nobody else knows
    with pytest.raises(WorldError, match="rank 0 of 2 on node7 failed in meeting the other ranks"):
        Group(alone, timeout_s=0.5)
    assert not dist.is_initialized()


def test_ranks_without_a_place_to_meet_are_told_so() -> None:
    with pytest.raises(WorldError, match="SLURM_NTASKS=2, but MASTER_ADDR and MASTER_PORT are not set"):
        Group(World(1, 2, 1, 2, "", 0, "node7", launcher="Slurm"), timeout_s=0.5)
    assert not dist.is_initialized()


def test_a_port_that_is_taken_is_told_from_a_lost_peer() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(WorldError, match=rf"port {port} of 127\.0\.0\.1 is taken by another program"):
            Group(World(0, 2, 0, 2, "127.0.0.1", port, "node7"), timeout_s=0.5)


def test_a_collective_that_fails_names_the_rank() -> None:
    with Group(World()) as group:
        pass
    with pytest.raises(WorldError, match="rank 0 of 1 on localhost failed in an all-reduce"):
        group.all_reduce(torch.zeros(2))


def test_an_experiment_may_name_every_backend_of_the_table() -> None:
    assert get_args(CommConfig.model_fields["backend"].annotation) == ("auto", *BACKENDS)


def test_what_a_backend_writes_on_stdout_while_it_meets_is_not_shown(monkeypatch: pytest.MonkeyPatch,
                                                                     capfd: pytest.CaptureFixture[str]) -> None:
    meet = dist.init_process_group

    def chatty(*arguments: Any, **named: Any) -> None:
        os.write(1, b"[Gloo] Rank 0 is connected to 0 peer ranks.\n")  # as that of torch 2.8 does
        meet(*arguments, **named)

    monkeypatch.setattr(dist, "init_process_group", chatty)
    print("before")
    with Group(World()):
        print("after")
    assert capfd.readouterr().out == "before\nafter\n"
