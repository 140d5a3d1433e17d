"""Checkpoints that several hosts write: whole whoever is late, lost or wrong."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from distrib import checkpoint_parts
from distrib.checkpoint import Checkpoint, prune, read_checkpoint, write_checkpoint
from distrib.checkpoint_parts import PartWriter, Writers, part_of, remove_parts, share_tensors, write_all_parts
from distrib.rundir import RunDir

WRITERS = 3


@given(st.lists(st.integers(0, 10**9), max_size=40), st.integers(1, 9))
def test_every_tensor_has_one_writer_and_nobody_has_much_more(bytes_: list[int], writers: int) -> None:
    sizes = {("model", str(number)): size for number, size in enumerate(bytes_)}
    shares = share_tensors(sizes, writers)
    assert sorted(name for share in shares for name in share) == sorted(sizes)
    loads = [sum(sizes[name] for name in share) for share in shares]
    assert max(loads) <= sum(bytes_) / writers + max(bytes_, default=0)


def made(step: int) -> Checkpoint:
    generator = torch.Generator().manual_seed(step)
    model = {f"layer{number}": torch.randn(number + 1, 7, generator=generator) for number in range(5)}
    moments = {f"{name}/exp_avg": tensor * 3 for name, tensor in model.items()}
    return Checkpoint(step, model, moments, {name: -tensor for name, tensor in model.items()}, {"reduction": {}})


def begin(run: RunDir, number: int, state: Checkpoint, key: str = "k") -> None:
    """Another host's writer writes its part."""
    writer = PartWriter(run, Writers(WRITERS, number, key))
    writer.submit(state.step, lambda: state)
    writer.wait()


def finish(run: RunDir, state: Checkpoint, told: dict[str, str] | None = None) -> Path:
    writers = Writers(WRITERS, 0, "k", ("node1", "node2", "node3"))
    said = {} if told is None else told
    return write_checkpoint(run, state,
                            lambda staging: write_all_parts(run, staging, state, writers, said.__setitem__))


def assert_whole(path: Path, state: Checkpoint) -> None:
    read = read_checkpoint(path)
    assert read.kinds.keys() == state.kinds.keys()
    for kind, tensors in state.kinds.items():
        assert read.kinds[kind].keys() == tensors.keys()
        assert all(torch.equal(read.kinds[kind][name], tensor) for name, tensor in tensors.items())
    names = {path.name for path in path.parent.iterdir()}
    assert names == {path.name}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDir:
    monkeypatch.setattr(checkpoint_parts, "PATIENCE_S", 0.05)
    return RunDir(tmp_path / "run")


def test_others_parts_are_taken(run: RunDir) -> None:
    state = made(1)
    marks = {}
    for number in (1, 2):
        begin(run, number, state)
        for name in part_of(state, WRITERS, number):
            marks[name] = next(run.checkpoints.glob(f".*.{number + 1}.part")).joinpath(name).stat().st_ino
    path = finish(run, state)
    assert {name: (path / name).stat().st_ino for name in marks} == marks
    assert_whole(path, state)


def test_parts_that_do_not_come_are_written_by_the_leader_and_told(run: RunDir) -> None:
    begin(run, 2, made(1))
    told: dict[str, str] = {}
    assert_whole(finish(run, made(1), told), made(1))
    assert told == {"node2": "did not come in time", "node3": ""}


def test_a_part_of_a_state_that_differs_by_a_bit_is_not_taken_and_told(run: RunDir) -> None:
    """Its document is sealed and its files match it: only the leader's own state tells that they are wrong."""
    state, other = made(1), made(1)
    kind, name = share_tensors({(kind, name): tensor.nbytes for kind, tensors in other.kinds.items()
                                for name, tensor in tensors.items()}, WRITERS)[1][0]
    other.kinds[kind][name].view(torch.int32)[0, 0] ^= 1
    begin(run, 1, other)
    begin(run, 2, state)
    told: dict[str, str] = {}
    assert_whole(finish(run, state, told), state)
    assert "not of the state that this host holds" in told["node2"]
    assert told["node3"] == ""


def test_a_listing_that_comes_late_is_waited_for(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network file system: what it did not find it takes for absent until a folder is opened anew."""
    monkeypatch.setattr(checkpoint_parts, "PATIENCE_S", 20.0)
    state = made(1)
    begin(run, 1, state)
    begin(run, 2, state)
    listings: Iterator[list[str]] = iter([[], [], []])
    real = os.listdir
    monkeypatch.setattr(os, "listdir", lambda path: _late(listings, real, path))
    monkeypatch.setattr(Path, "exists", lambda path: False)
    told: dict[str, str] = {}
    path = finish(run, state, told)
    monkeypatch.undo()
    assert_whole(path, state)
    assert told == {"node2": "", "node3": ""}


def _late(listings: Iterator[list[str]], real: Callable[[Path], list[str]], path: Path) -> list[str]:
    early = next(listings, None)
    return real(path) if early is None else early


def test_parts_that_came_too_late_are_removed_at_the_end(run: RunDir) -> None:
    path = finish(run, made(1))
    begin(run, 1, made(1))
    remove_parts(run)
    assert_whole(path, made(1))


@pytest.mark.parametrize("harm", ["a bit", "cut short", "another view", "another's state", "no document", "garbage"])
def test_parts_that_are_wrong_are_not_taken(run: RunDir, harm: str) -> None:
    state = made(1)
    for number in (1, 2):
        begin(run, number, state, key="old" if harm == "another view" else "k")
    folder = next(run.checkpoints.glob(".*.2.part"))
    victim = sorted(folder.glob("*.safetensors"))[0]
    content = victim.read_bytes()
    if harm == "a bit":
        victim.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif harm == "cut short":
        victim.write_bytes(content[:-8])
    elif harm == "another's state":
        victim.unlink()
    elif harm == "no document":
        (folder / checkpoint_parts.DOCUMENT).unlink()
    elif harm == "garbage":
        (folder / checkpoint_parts.DOCUMENT).write_bytes(b"[1]")
    path = finish(run, state)
    prune(run, 3, 1)
    assert_whole(path, state)


def test_pruning_spares_parts_of_later_steps(run: RunDir) -> None:
    begin(run, 1, made(2))
    path = finish(run, made(1))
    prune(run, 3, 1)
    assert [part.name[:15] for part in run.checkpoints.glob(".*.part")] == [".step-000000002"]
    assert path.exists()
