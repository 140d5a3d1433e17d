"""Ranks compare what they were given; here they are threads, in integration/test_training.py processes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch

from distrib.config import Experiment, load_experiment
from distrib.data.manifest import Manifest, load_manifest
from distrib.errors import ConfigError, DistribError
from distrib.rundir import RunDir
from distrib.train import agree
from distrib.train.agree import NotLetInError, agree_on_experiment, warn_of_other_processors
from distrib.train.settle import Settled
from distrib.world import World

_Result = TypeVar("_Result")


class Meeting:
    """Collectives among threads."""

    def __init__(self, size: int) -> None:
        self.size, self.barrier, self.given = size, threading.Barrier(size, timeout=20), [torch.zeros(0)] * size
        self.content = b""


class ThreadGroup:
    """One thread's part of a meeting; answers like `distrib.comm.group.Group`."""

    def __init__(self, meeting: Meeting, rank: int) -> None:
        self.meeting, self.rank, self.size = meeting, rank, meeting.size
        self.world = World(rank, meeting.size, host=f"node{rank}")

    def broadcast_bytes(self, content: bytes | None) -> bytes:
        if content is not None:
            self.meeting.content = content
        self.meeting.barrier.wait()
        received = self.meeting.content
        self.meeting.barrier.wait()
        return received

    def all_reduce(self, tensor: torch.Tensor, operation: str = "sum") -> None:
        self.meeting.given[self.rank] = tensor.clone()
        self.meeting.barrier.wait()
        every = torch.stack(self.meeting.given)
        tensor.copy_(every.amax(0) if operation == "max" else every.sum(0))
        self.meeting.barrier.wait()


def on_every_rank(size: int, work: Callable[[Any], _Result]) -> list[_Result]:
    meeting = Meeting(size)
    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(work, [ThreadGroup(meeting, rank) for rank in range(size)]))


@pytest.fixture
def manifest(dataset: Path) -> Manifest:
    return load_manifest(dataset)


def given(experiment: Path, manifest: Manifest, *overrides: str) -> Settled:
    return Settled(RunDir(Path("run")), load_experiment(experiment, overrides), manifest)


def test_equal_experiments_are_agreed_on(experiment: Path, manifest: Manifest) -> None:
    # What only says where data lies and how they are read may differ.
    ranks = [given(experiment, manifest, f"data.dataset=/disk{rank}", f"data.decode_threads={rank + 1}")
             for rank in range(3)]
    agreed = on_every_rank(3, lambda group: agree_on_experiment(ranks[group.rank], group))
    assert agreed == [settled.experiment for settled in ranks]


@pytest.mark.parametrize("fast_ranks", [(0,), (1, 2), ()])
def test_rank_0_decides_an_automatic_precision(experiment: Path, manifest: Manifest, monkeypatch: pytest.MonkeyPatch,
                                               fast_ranks: tuple[int, ...]) -> None:
    settled = given(experiment, manifest, "train.precision=auto")
    local = threading.local()
    monkeypatch.setattr(agree, "resolve_precision", lambda wish: "bf16" if local.rank in fast_ranks else "fp32")

    def work(group: Any) -> Experiment:
        local.rank = group.rank
        return agree_on_experiment(settled, group)

    assert {one.train.precision for one in on_every_rank(3, work)} == {"bf16" if 0 in fast_ranks else "fp32"}


@pytest.mark.parametrize("odd_rank", [0, 1, 2])
@pytest.mark.parametrize(("override", "named"), [("train.lr=0.3", "train.lr"), ("seed=9", "seed"),
                                                 ("train.precision=bf16", "train.precision")])
def test_another_experiment_is_refused_on_every_rank(experiment: Path, manifest: Manifest, odd_rank: int,
                                                     override: str, named: str) -> None:
    ranks = [given(experiment, manifest, *([override] if rank == odd_rank else [])) for rank in range(3)]

    def work(group: Any) -> str:
        with pytest.raises(ConfigError) as caught:
            agree_on_experiment(ranks[group.rank], group)
        return caught.value.fact

    first = odd_rank or 1  # if rank 0 differs from all, the next one is named
    assert set(on_every_rank(3, work)) == {f"rank {first} on node{first} has another {named} than rank 0"}


def test_a_newcomer_takes_what_does_not_change_the_model(experiment: Path, manifest: Manifest) -> None:
    ranks = [given(experiment, manifest, "comm.backend=gloo", "guard.every_steps=7", "data.decode_threads=2")] * 2
    ranks.append(given(experiment, manifest, "comm.silence_s=3", "train.ledger=true", "data.decode_threads=5"))
    agreed = on_every_rank(3, lambda group: agree_on_experiment(ranks[group.rank], group, [2]))
    assert agreed[0] == agreed[1] == ranks[0].experiment
    assert agreed[2] == load_experiment(experiment, ["comm.backend=gloo", "guard.every_steps=7",
                                                     "data.decode_threads=5"])


def test_a_newcomer_with_another_experiment_ends_alone(experiment: Path, manifest: Manifest) -> None:
    ranks = [given(experiment, manifest)] * 2 + [given(experiment, manifest, "train.lr=0.3", "guard.every_steps=7")]

    def work(group: Any) -> DistribError:
        with pytest.raises(DistribError) as caught:
            agree_on_experiment(ranks[group.rank], group, [2])
        return caught.value

    errors = on_every_rank(3, work)
    assert [type(error) for error in errors] == [NotLetInError, NotLetInError, ConfigError]
    assert {error.fact for error in errors} == {"rank 2 on node2 has another train.lr than rank 0"}


def test_other_data_are_refused(experiment: Path, manifest: Manifest) -> None:
    other = manifest.model_copy(update={"sha256": "0" * 64})

    def work(group: Any) -> None:
        with pytest.raises(ConfigError, match="rank 1 on node1 has another dataset_sha256 than rank 0"):
            agree_on_experiment(given(experiment, other if group.rank else manifest), group)

    on_every_rank(2, work)


def test_other_processors_are_told_of(dataset: Path) -> None:
    same: Mapping[str, Any] = {"processor": "X", "instruction_sets": ["avx2"], "torch_capability": "AVX2",
                               "packages": {"torch": "2"}, "threads": 1, "host": "here"}
    told: list[str] = []

    def work(group: Any) -> None:
        mine = {**same, "host": f"node{group.rank}"} | ({"processor": "Y" * 600} if group.rank == 2 else {})
        warn_of_other_processors(mine, group, told.append if group.rank == 0 else lambda _: None)

    on_every_rank(2, work)
    assert told == []
    on_every_rank(4, work)
    (line,) = told
    assert line.startswith("warning: rank 2 on node2 has another processor (YYY")
