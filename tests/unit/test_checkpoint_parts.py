"""Checkpoints that several hosts write: whole whoever is late, lost or wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from distrib import checkpoint_parts
from distrib.checkpoint import Checkpoint, prune, read_checkpoint, write_checkpoint
from distrib.checkpoint_parts import PartWriter, Writers, part_of, share_tensors, write_all_parts
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


def finish(run: RunDir, state: Checkpoint) -> Path:
    writers = Writers(WRITERS, 0, "k")
    return write_checkpoint(run, state, lambda staging: write_all_parts(run, staging, state, writers))


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


def test_parts_that_do_not_come_are_written_by_the_leader(run: RunDir) -> None:
    begin(run, 2, made(1))
    assert_whole(finish(run, made(1)), made(1))


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
