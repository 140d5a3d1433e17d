"""Peers that die at random moments over oneCCL: an exception that names them in seconds, no hang, no abort."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable

import pytest

from distrib.comm import oneccl

Start = Callable[..., "subprocess.Popen[str]"]
WITHIN_S = 5.0
EXIT_CODE = 7  # tests/rig/deaths.py: of a rank that had its exception


@pytest.fixture(autouse=True)
def _built() -> None:
    lack = oneccl.missing()
    if lack is not None:
        assert os.environ.get("CI") != "true", lack
        pytest.skip(lack)


def check(start: Start, action: str, phase: str, count: int, shared_memory: bool, again: bool = False) -> None:
    words = ["--again"] if again else []
    process = start(sys.executable, "-m", "tests.rig.deaths", "oneccl", action, phase, str(count), "1", *words,
                    CCL_ATL_SHM=str(int(shared_memory)), OMP_NUM_THREADS="1")
    out, err = process.communicate()
    trials = [json.loads(line) for line in out.splitlines() if line.startswith("{")]  # oneCCL chatters there
    assert len(trials) == count, err[-3000:]
    for trial in trials:
        name = rf"rank {trial['plan']['victim']} on {re.escape(socket.gethostname())} (is lost|has left)"
        for survivor in trial["survivors"]:
            assert survivor["seconds"] is not None, trial
            assert survivor["seconds"] < WITHIN_S, trial
            assert re.search(name, survivor["message"]), trial
            assert survivor["exit_code"] == EXIT_CODE, trial
            assert survivor["again"] == ("right" if again else ""), trial


@pytest.mark.timeout(120)
@pytest.mark.parametrize("shared_memory", [True, pytest.param(False, marks=pytest.mark.soak)])
def test_five_kills(start: Start, shared_memory: bool) -> None:
    check(start, "kill", "both", 5, shared_memory)


@pytest.mark.soak
@pytest.mark.timeout(900)
@pytest.mark.parametrize("shared_memory", [True, False])
def test_twenty_kills(start: Start, shared_memory: bool) -> None:
    check(start, "kill", "both", 20, shared_memory)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("action", ["stop", "leave"])
def test_silence_and_leaving(start: Start, action: str) -> None:
    check(start, action, "training", 2, True)


@pytest.mark.timeout(280)
@pytest.mark.parametrize("shared_memory", [True, False])
def test_survivors_make_a_group_of_their_own(start: Start, shared_memory: bool) -> None:
    check(start, "kill", "training", 4, shared_memory, again=True)
