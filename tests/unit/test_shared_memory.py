"""What killed ranks leave in shared memory is given back, and nothing else."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from distrib.comm import oneccl
from launch import processes


@pytest.fixture
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(oneccl, "SHARED_MEMORY", tmp_path)
    monkeypatch.setattr(processes, "SHARED_MEMORY", tmp_path)
    return tmp_path


def test_the_launcher_removes_that_of_a_rank_that_ended(memory: Path) -> None:
    uid = os.getuid()
    for name in (f"77:{uid}:0", f"77:{uid}:0:1179", f"777:{uid}:0", f"77:{uid + 1}:0"):
        (memory / name).touch()
    processes.remove_shared_memory(77)
    assert sorted(path.name for path in memory.iterdir()) == sorted([f"777:{uid}:0", f"77:{uid + 1}:0"])


def test_a_start_removes_what_ranks_left_that_are_long_gone(memory: Path) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    uid = os.getuid()
    left, living, foreign = (memory / name for name in (f"{gone.pid}:{uid}:0", f"{os.getpid()}:{uid}:0", "torch_12"))
    for path in (left, living, foreign):
        path.touch()
    made = left.stat().st_mtime
    oneccl.remove_left_memory(made + oneccl.LEFT_S - 1)
    assert left.exists()
    oneccl.remove_left_memory(made + oneccl.LEFT_S + 1)
    assert not left.exists()
    assert living.exists()
    assert foreign.exists()
