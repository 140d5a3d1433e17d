"""Checkpoints are whole or absent; the newest whole one is found whatever happened to the others."""

from __future__ import annotations

import errno
import json
import os
import pickle
import resource
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load

from distrib import checkpoint, checkpoint_writer
from distrib.checkpoint import (
    FORMAT,
    Checkpoint,
    Tensors,
    best_checkpoint,
    checkpoint_paths,
    newest_checkpoint,
    prune,
    read_checkpoint,
    read_summary,
    seems_whole,
    write_checkpoint,
)
from distrib.checkpoint_writer import CheckpointWriter
from distrib.durable import seal, sha256_file
from distrib.errors import CheckpointError, StorageError, WorldError
from distrib.rundir import RunDir
from distrib.tensor_file import write_tensors
from tests.rig.disk import SmallDisk, small_disk


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return RunDir(tmp_path / "run")


def made(step: int, score: float | None = None, *, ema: bool = False) -> Checkpoint:
    generator = torch.Generator().manual_seed(step)
    model = {"conv.weight": torch.randn(4, 3, 3, 3, generator=generator).to(memory_format=torch.channels_last),
             "bn.num_batches_tracked": torch.tensor(step), "half": torch.randn(5, generator=generator).bfloat16()}
    return Checkpoint(step, model, {"conv.weight/step": torch.tensor(float(step))},
                      {name: tensor * 2 for name, tensor in model.items()} if ema else None,
                      {"reduction": {"gradients": [-3, 4]}, "validation": None if score is None else {"score": score}})


def assert_same(one: Checkpoint, other: Checkpoint) -> None:
    assert (one.step, one.progress) == (other.step, other.progress)
    for mine, theirs in ((one.model, other.model), (one.optimizer, other.optimizer), (one.ema or {}, other.ema or {})):
        assert mine.keys() == theirs.keys()
        for name, tensor in mine.items():
            assert tensor.dtype == theirs[name].dtype
            assert torch.equal(tensor, theirs[name])


def steps(run: RunDir) -> list[int]:
    return [int(path.name.removeprefix("step-")) for path in checkpoint_paths(run)]


@pytest.fixture
def begun(run: RunDir) -> RunDir:
    """A run's folder, as training makes it before it writes any checkpoint."""
    run.root.mkdir()
    run.experiment.touch()
    return run


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    with small_disk(tmp_path / "disk", "256k") as made:
        yield made


def quiet(text: str) -> None:
    pytest.fail(f"warned: {text}")


@pytest.mark.parametrize("ema", [False, True])
def test_a_checkpoint_comes_back_bit_for_bit(run: RunDir, ema: bool) -> None:
    written = made(7, 0.5, ema=ema)
    path = write_checkpoint(run, written)
    read = read_checkpoint(path)
    assert_same(read, written)
    assert (read.ema is not None) == ema
    assert read.weights is (read.ema if ema else read.model)
    assert read.path == path
    assert sorted(os.listdir(path)) == sorted(
        ["checkpoint.json", "model.safetensors", "optimizer.safetensors"] + ["ema.safetensors"] * ema)
    assert os.listdir(run.checkpoints) == ["step-000000007"]


def test_a_run_without_checkpoints(run: RunDir) -> None:
    assert checkpoint_paths(run) == []
    assert newest_checkpoint(run, quiet) is None
    with pytest.raises(CheckpointError, match="has no checkpoint"):
        best_checkpoint(run, quiet)
    run.root.mkdir()
    run.checkpoints.write_text("no folder")
    with pytest.raises(CheckpointError, match="can not be read: Not a directory"):
        newest_checkpoint(run, quiet)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.EIO, "Input/output error")])
def test_stopped_while_writing_leaves_only_what_was_whole(run: RunDir, monkeypatch: pytest.MonkeyPatch,
                                                         error: BaseException) -> None:
    write_checkpoint(run, made(1))

    def stop(*_: object) -> None:
        raise error

    monkeypatch.setattr(checkpoint, "publish_dir", stop)
    with pytest.raises(StorageError if isinstance(error, OSError) else KeyboardInterrupt):
        write_checkpoint(run, made(2))
    assert os.listdir(run.checkpoints) == ["step-000000001"]
    found = newest_checkpoint(run, quiet)
    assert found is not None
    assert_same(found, made(1))


def kill_while_writing(run: RunDir, step: int) -> None:
    """Leave what a process leaves that is killed before it gives a checkpoint its name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda *_, **__: None)
        patch.setattr(checkpoint, "publish_dir", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            write_checkpoint(run, made(step))


def test_a_killed_writers_leftovers_are_no_checkpoint_and_in_nobodys_way(run: RunDir) -> None:
    write_checkpoint(run, made(1))
    kill_while_writing(run, 2)
    assert len(os.listdir(run.checkpoints)) == 2
    assert steps(run) == [1]
    # The next process may have the killed one's id, as in containers.
    write_checkpoint(run, made(2))
    assert steps(run) == [2, 1]
    found = newest_checkpoint(run, quiet)
    assert found is not None
    assert_same(found, made(2))
    kill_while_writing(run, 3)
    doomed = run.checkpoints / ".step-000000000.1.removed"
    doomed.mkdir()
    (doomed / "model.safetensors").touch()
    prune(run, 5, 2)
    assert sorted(os.listdir(run.checkpoints)) == ["step-000000001", "step-000000002"]


def test_a_step_that_is_done_again_replaces_its_checkpoint(run: RunDir) -> None:
    path = write_checkpoint(run, made(4))
    (path / "model.safetensors").write_bytes(b"damaged")
    write_checkpoint(run, made(4))
    found = newest_checkpoint(run, quiet)
    assert found is not None
    assert_same(found, made(4))
    assert os.listdir(run.checkpoints) == ["step-000000004"]


def test_any_flipped_byte_is_found_named_and_passed_over(run: RunDir) -> None:
    write_checkpoint(run, made(1))
    path = write_checkpoint(run, made(2, ema=True))
    whole = {file.name: file.read_bytes() for file in path.iterdir()}

    @settings(max_examples=60)
    @given(name=st.sampled_from(sorted(whole)), place=st.integers(0, 10**6), change=st.integers(1, 255))
    def found_out(name: str, place: int, change: int) -> None:
        content = bytearray(whole[name])
        content[place % len(content)] ^= change
        (path / name).write_bytes(content)
        warnings: list[str] = []
        found = newest_checkpoint(run, warnings.append)
        (path / name).write_bytes(whole[name])
        assert found is not None
        assert_same(found, made(1))
        [warning] = warnings
        assert str(path) in warning
        assert name in warning

    found_out()


@pytest.mark.parametrize("name", ["checkpoint.json", "model.safetensors", "optimizer.safetensors"])
@pytest.mark.parametrize("damage", ["gone", "empty", "cut", "folder"])
def test_a_missing_or_cut_file_is_named(run: RunDir, name: str, damage: str) -> None:
    path = write_checkpoint(run, made(3)) / name
    if damage in ("gone", "folder"):
        path.unlink()
    if damage == "folder":
        path.mkdir()
    if damage in ("empty", "cut"):
        os.truncate(path, 0 if damage == "empty" else path.stat().st_size - 1)
    with pytest.raises(CheckpointError, match=name) as caught:
        read_checkpoint(path.parent)
    assert str(path.parent) in caught.value.fact


@pytest.mark.parametrize(("content", "what"), [
    (seal("distrib-checkpoint/2", {"step": 2, "files": {}, "progress": {}}), "its format is 'distrib-checkpoint/2'"),
    (seal("distrib-bundle/1", {}), "its format is 'distrib-bundle/1'"),
    (seal(FORMAT, {"step": 2}), "it lacks files, progress"),
    (b"\x80\x04]", "does not begin"),
])
def test_a_document_of_another_format_is_named_and_passed_over(run: RunDir, content: bytes, what: str) -> None:
    write_checkpoint(run, made(1))
    path = write_checkpoint(run, made(2))
    (path / "checkpoint.json").write_bytes(content)
    warnings: list[str] = []
    found = newest_checkpoint(run, warnings.append)
    assert found is not None
    assert found.step == 1
    [warning] = warnings
    assert f"{path} is damaged: checkpoint.json: " in warning
    assert what in warning


def test_when_every_checkpoint_is_damaged_the_run_does_not_begin_anew(run: RunDir) -> None:
    for step in (1, 2):
        (write_checkpoint(run, made(step)) / "checkpoint.json").write_bytes(b"{}")
    warnings: list[str] = []
    with pytest.raises(CheckpointError, match="every checkpoint"):
        newest_checkpoint(run, warnings.append)
    assert len(warnings) == 2


class Unpickled:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, ("evidence",)


def test_nothing_is_unpickled(run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A forger who can seal documents still gets no code of theirs run.
    monkeypatch.chdir(tmp_path)
    path = write_checkpoint(run, made(5))
    for content in (pickle.dumps(Unpickled()), b"PK\x03\x04" + pickle.dumps(Unpickled())):
        (path / "model.safetensors").write_bytes(content)
        files = {name: sha256_file(path / name) for name in ("model.safetensors", "optimizer.safetensors")}
        (path / "checkpoint.json").write_bytes(seal(FORMAT, {"step": 5, "files": files, "progress": {}}))
        with pytest.raises(CheckpointError, match=r"model\.safetensors"):
            read_checkpoint(path)
    assert not (tmp_path / "evidence").exists()
    pickle.loads(pickle.dumps(Unpickled()))  # the trap does work
    assert (tmp_path / "evidence").exists()


def test_a_summary_needs_no_tensors(run: RunDir) -> None:
    path = write_checkpoint(run, made(5, 0.25))
    for file in path.glob("*.safetensors"):
        file.unlink()
    step, progress, files = read_summary(path)
    assert (step, progress["validation"]["score"]) == (5, 0.25)
    assert sorted(files) == ["model.safetensors", "optimizer.safetensors"]


def test_the_best_has_the_highest_score_and_is_the_earliest_of_equals(run: RunDir) -> None:
    for step, score in ((1, None), (2, 0.5), (3, 0.75), (4, 0.75), (5, -1.0), (6, None)):
        write_checkpoint(run, made(step, score))
    assert best_checkpoint(run, quiet).step == 3
    (run.checkpoint(3) / "model.safetensors").unlink()
    warnings: list[str] = []
    assert best_checkpoint(run, warnings.append).step == 4
    assert str(run.checkpoint(3)) in warnings[0]


def test_without_scores_the_newest_is_the_best(run: RunDir) -> None:
    for step in (1, 20, 3):
        write_checkpoint(run, made(step))
    assert best_checkpoint(run, quiet).step == 20


@pytest.mark.parametrize(("keep_last", "kept"), [(1, [6, 3]), (2, [6, 5, 3]), (4, [6, 5, 4, 3]),
                                                 (9, [6, 5, 4, 3, 2, 1])])
def test_the_newest_and_the_best_are_kept(run: RunDir, keep_last: int, kept: list[int]) -> None:
    for step, score in ((1, 0.1), (2, None), (3, 0.9), (4, 0.9), (5, 0.2), (6, None)):
        write_checkpoint(run, made(step, score))
    prune(run, keep_last, 6)
    assert steps(run) == kept
    for path in checkpoint_paths(run):
        read_checkpoint(path)


@pytest.mark.parametrize("damage", ["gone", "cut", "document"])
def test_damaged_checkpoints_do_not_count_among_those_kept(run: RunDir, damage: str) -> None:
    for step in range(1, 6):
        write_checkpoint(run, made(step))
    for step in (5, 3):
        path = run.checkpoint(step)
        assert seems_whole(path)
        if damage == "document":
            (path / "checkpoint.json").write_bytes(b"{}")
        elif damage == "cut":
            os.truncate(path / "model.safetensors", 100)
        else:
            (path / "optimizer.safetensors").unlink()
        assert not seems_whole(path)
    prune(run, 2, 5)
    assert steps(run) == [5, 4, 3, 2]  # 4 and 2 are whole
    write_checkpoint(run, made(6))
    prune(run, 2, 6)
    assert steps(run) == [6, 5, 4]
    (run.checkpoint(6) / "checkpoint.json").unlink()
    prune(run, 2, 6)
    assert steps(run) == [6, 5, 4]


def test_a_damaged_best_checkpoint_leaves_the_next_best(run: RunDir) -> None:
    for step, score in ((1, 0.8), (2, 0.9), (3, 0.1), (4, 0.2)):
        write_checkpoint(run, made(step, score))
    (run.checkpoint(2) / "model.safetensors").unlink()
    prune(run, 1, 4)
    assert steps(run) == [4, 1]
    assert best_checkpoint(run, quiet).step == 1


def test_checkpoints_that_do_not_tell_their_sizes_are_used_and_kept(run: RunDir) -> None:
    for step in (1, 2):
        path = write_checkpoint(run, made(step))
        document = json.loads((path / "checkpoint.json").read_text())
        body = {name: document[name] for name in ("step", "files", "progress")}
        (path / "checkpoint.json").write_bytes(seal(FORMAT, body))
    prune(run, 2, 2)
    assert steps(run) == [2, 1]
    assert_same(read_checkpoint(run.checkpoint(2)), made(2))
    (run.checkpoint(2) / "model.safetensors").unlink()
    assert not seems_whole(run.checkpoint(2))


def test_damaged_later_checkpoints_do_not_push_out_whole_ones(run: RunDir) -> None:
    # The run went on from step 3, as 6 and 9 were damaged, and was stopped at step 5.
    for step, score in ((3, 0.5), (6, 0.9), (9, None)):
        path = write_checkpoint(run, made(step, score))
        if step > 3:
            (path / "model.safetensors").write_bytes(b"damaged")
    write_checkpoint(run, made(5))
    prune(run, 1, 5)
    found = newest_checkpoint(run, lambda _: None)
    assert found is not None
    assert found.step == 5
    assert best_checkpoint(run, lambda _: None).step == 3


@contextmanager
def full_disk(byte_limit: int) -> Iterator[None]:
    """Files can not grow beyond a size: the nearest thing to a full disk that a test may make."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (byte_limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_costs_no_older_checkpoint(run: RunDir) -> None:
    write_checkpoint(run, made(1))
    with full_disk(300), pytest.raises(StorageError, match="step 2 could not be written: File too large") as caught:
        write_checkpoint(run, made(2))
    assert "checkpoints before it are whole" in caught.value.consequence
    assert os.listdir(run.checkpoints) == ["step-000000001"]
    found = newest_checkpoint(run, quiet)
    assert found is not None
    assert_same(found, made(1))


def test_what_is_read_back_must_be_what_was_written(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    write_checkpoint(run, made(1))
    real = write_tensors

    def bad_disk(path: Path, tensors: Tensors) -> str:
        digest = real(path, tensors)
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
        return digest

    monkeypatch.setattr(checkpoint, "write_tensors", bad_disk)
    with pytest.raises(StorageError, match="step 2 could not be written: what was read back is not what was written"):
        write_checkpoint(run, made(2))
    assert steps(run) == [1]


def submit(writer: CheckpointWriter, step: int, *, last: bool = False) -> None:
    writer.submit(step, lambda: made(step), last=last)


def slowly(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Storage that takes until the event is set."""
    proceed = threading.Event()
    real_write = checkpoint.write_checkpoint

    def slow(run: RunDir, state: Checkpoint, write: Callable[[Path], dict[str, str]]) -> Path:
        assert proceed.wait(60)
        return real_write(run, state, write)

    monkeypatch.setattr(checkpoint_writer, "write_checkpoint", slow)
    return proceed


def test_the_writer_works_behind_and_prunes(begun: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    proceed = slowly(monkeypatch)
    writer = CheckpointWriter(begun, 2, quiet, patience_s=60)
    submit(writer, 1)  # returns although nothing is written yet
    assert steps(begun) == []
    proceed.set()
    for step in (2, 3, 4):
        submit(writer, step)
    writer.wait()
    assert steps(begun) == [4, 3]
    assert not [thread for thread in threading.enumerate() if thread.name == "checkpoint"]
    writer.wait()  # nothing to wait for any more
    assert writer.settle() == 4


def test_who_was_fenced_off_while_it_wrote_publishes_nothing(begun: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when the process was stopped in the middle, and another leads the run since."""
    allowed = [True]
    writer = CheckpointWriter(begun, 2, quiet, permitted=lambda: allowed[0])
    submit(writer, 1)
    writer.wait()
    others = begun.checkpoints / ".step-000000009.1.partial"
    others.mkdir()
    real_write = write_tensors

    def stopped(path: Path, tensors: Tensors) -> str:
        allowed[0] = False
        return real_write(path, tensors)

    monkeypatch.setattr(checkpoint, "write_tensors", stopped)
    submit(writer, 2)
    with pytest.raises(WorldError, match="another training took over"):
        writer.wait()
    assert steps(begun) == [1]
    assert [path.name for path in begun.checkpoints.glob(".*")] == [others.name]


def test_on_slow_storage_checkpoints_are_skipped_and_cost_nothing(begun: RunDir,
                                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    proceed = slowly(monkeypatch)
    told: list[str] = []
    writer = CheckpointWriter(begun, 9, told.append, patience_s=0.01)
    submit(writer, 1)
    for step in (2, 3):
        writer.submit(step, lambda: pytest.fail("cloned for nothing"))
    [note] = told
    assert "step 1 is still being written" in note
    assert "step 2 is skipped" in note
    proceed.set()
    assert writer.settle() == 1
    assert "step 1 is written" in told[-1]
    assert "2, of steps 2 to 3, skipped meanwhile" in told[-1]
    submit(writer, 4)
    writer.wait()
    assert steps(begun) == [4, 1]


def test_the_last_checkpoint_waits_for_slow_storage(begun: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    proceed = slowly(monkeypatch)
    waits: list[str] = []

    def tell(text: str) -> None:
        waits.append(text)
        proceed.set()

    writer = CheckpointWriter(begun, 9, tell, patience_s=0.01)
    submit(writer, 1)
    submit(writer, 2, last=True)
    writer.wait()
    assert steps(begun) == [2, 1]
    # The second one may take more than the patience, too.
    assert waits[0] == "note: the checkpoint of step 1 is still being written; waiting for it"


def test_a_full_disk_is_told_once_and_survived(disk: SmallDisk) -> None:
    run, told = RunDir(disk.path / "run"), list[str]()
    run.root.mkdir()
    run.experiment.touch()
    writer = CheckpointWriter(run, 2, told.append)
    for step in (1, 2):
        submit(writer, step)
    assert writer.settle() == 2
    assert told == []
    filler = disk.fill()
    for step in (3, 4, 5):
        submit(writer, step)
        assert writer.settle() == 2
    [warning] = told
    assert warning.startswith("warning: the checkpoint of step 3 could not be written: No space left on device")
    for words in ("Training goes on and tries again at the next checkpoint", "the newest whole one is that of step 2",
                  f"a checkpoint needs 0.1 MB, and 0.0 MB are free in {run.root}"):
        assert words in warning
    with pytest.raises(StorageError, match="the last checkpoint, of step 5, is not on the disk: No space left") as late:
        writer.wait()
    assert late.value.consequence == "nothing older is lost: the newest whole checkpoint is that of step 2"
    assert "start the same command again, to go on from there" in late.value.remedy
    assert sorted(os.listdir(run.checkpoints)) == ["step-000000001", "step-000000002"]
    filler.unlink()
    submit(writer, 6, last=True)
    writer.wait()
    assert steps(run) == [6, 2]
    assert told[1:] == ["note: checkpoints can be written again: that of step 6 is; 3, of steps 3 to 5, could not be"]
    disk.fill()
    submit(writer, 7)
    writer.settle()
    assert "step 7 could not be written" in told[-1]
    submit(writer, 8, last=True)
    with pytest.raises(StorageError, match="step 8, is not on the disk"):
        writer.wait()
    assert len(told) == 3  # the last is told by the error
    found = newest_checkpoint(run, quiet)
    assert found is not None
    assert_same(found, made(6))


def test_a_read_only_disk_and_one_that_is_gone_are_told_and_survived(disk: SmallDisk) -> None:
    # The disk is the run's folder itself, so that an empty folder is left when it is gone.
    run, told = RunDir(disk.path), list[str]()
    run.experiment.touch()
    writer = CheckpointWriter(run, 1, told.append)
    submit(writer, 1)
    writer.settle()
    disk.mount("mount", "-o", "remount,ro", str(disk.inside))
    for step in (2, 3):
        submit(writer, step)
        writer.settle()
    disk.mount("mount", "-o", "remount,rw", str(disk.inside))
    for step in (4, 5):
        submit(writer, step)
        writer.settle()
    assert steps(run) == [5]
    disk.mount("umount", "--lazy", str(disk.inside))
    submit(writer, 6)
    writer.settle()
    assert os.listdir(run.root) == []
    readonly, again, gone = told
    assert "step 2 could not be written: Read-only file system" in readonly
    assert "mounted for writing again" in readonly
    assert "that of step 4 is; 2, of steps 2 to 3, could not be" in again
    assert f"the run's folder {run.root} is gone, removed or unmounted" in gone
    assert f"Bring {run.root} back" in gone
    with pytest.raises(StorageError, match="is gone, removed or unmounted"):
        writer.wait()


def test_a_removed_folder_is_not_made_again(begun: RunDir) -> None:
    told: list[str] = []
    writer = CheckpointWriter(begun, 1, told.append)
    submit(writer, 1)
    writer.settle()
    away = begun.root.rename(begun.root.with_name("away"))
    submit(writer, 2)
    writer.settle()
    assert not begun.root.exists()
    away.rename(begun.root)
    submit(writer, 3)
    writer.wait()
    assert steps(begun) == [3]
    assert ["gone" in text for text in told] == [True, False]


def test_old_checkpoints_that_can_not_be_removed_are_told_once(begun: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(path: Path) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    told: list[str] = []
    writer = CheckpointWriter(begun, 1, told.append)
    monkeypatch.setattr(checkpoint, "remove_tree", refused)
    for step in (1, 2, 3):
        submit(writer, step)
    writer.wait()
    assert steps(begun) == [3, 2, 1]
    [warning] = told
    assert warning.startswith("warning: old checkpoints could not be removed: Read-only file system")


def test_a_fault_of_the_writer_is_raised_at_the_next_call(begun: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("a fault of ours")

    writer = CheckpointWriter(begun, 2, quiet)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write_durable", fail)
        submit(writer, 1)
        with pytest.raises(RuntimeError):
            submit(writer, 2)
    assert steps(begun) == []
    submit(writer, 3)  # told once
    writer.wait()
    assert steps(begun) == [3]


def test_progress_that_is_no_json_is_refused_before_the_thread(begun: RunDir) -> None:
    writer = CheckpointWriter(begun, 1, quiet)
    for progress in ({"score": float("nan")}, {"tensor": torch.zeros(1)}):
        with pytest.raises((ValueError, TypeError)):
            writer.submit(1, lambda progress=progress: Checkpoint(1, {}, {}, None, progress))  # type: ignore[misc]
    writer.wait()
    assert steps(begun) == []


@settings(max_examples=40)
@given(st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8), st.tuples(
    st.sampled_from([torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16,
                     torch.int8, torch.uint8, torch.bool]), st.lists(st.integers(0, 3), max_size=4)), max_size=5))
def test_tensors_are_written_as_safetensors_writes_them(tmp_path_factory: pytest.TempPathFactory,
                                                        wanted: dict[str, tuple[torch.dtype, list[int]]]) -> None:
    path = tmp_path_factory.mktemp("tensors") / "x.safetensors"
    tensors = {name: torch.randint(0, 2, shape).to(dtype) for name, (dtype, shape) in wanted.items()}
    assert write_tensors(path, tensors) == sha256_file(path)
    read = load(path.read_bytes())
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert read[name].dtype == tensor.dtype
        assert torch.equal(read[name], tensor)


def test_checkpoint_json_is_readable_by_people(run: RunDir) -> None:
    document = json.loads((write_checkpoint(run, made(2, 0.5)) / "checkpoint.json").read_text())
    assert document["format"] == FORMAT
    assert document["step"] == 2
