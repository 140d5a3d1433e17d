from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from distrib.elastic.lease import Lease, is_gone, process_identity
from distrib.errors import CheckpointError
from distrib.rundir import RunDir

ELSEWHERE = {"boot": "another", "namespace": "x", "pid": 1, "started": 1.0}


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return RunDir(tmp_path / "run")


def quiet(_: str) -> None:
    """Says nothing."""


def test_who_trains_refuses_another_until_it_is_released(run: RunDir) -> None:
    first, second = Lease(run, "a", 5.0), Lease(run, "b", 5.0)
    first.take(quiet)
    with pytest.raises(CheckpointError, match="another training"):
        second.take(quiet)
    assert first.is_ours()
    first.release()
    second.take(quiet)
    assert second.token == first.token + 1
    assert not first.is_ours()
    second.release()


def test_a_holder_that_was_killed_here_is_known_at_once(run: RunDir) -> None:
    code = ("import os, sys; from pathlib import Path; from distrib.elastic.lease import Lease; "
            "from distrib.rundir import RunDir; Lease(RunDir(Path(sys.argv[1])), 'a', 60.0).take(print); os._exit(9)")
    subprocess.run([sys.executable, "-c", code, run.root], check=False)
    began = time.monotonic()
    lease = Lease(run, "b", 60.0)
    lease.take(quiet)
    assert time.monotonic() - began < 60.0
    assert lease.token == 1
    lease.release()


def test_a_holder_that_ended_and_nobody_waited_for_is_gone(run: RunDir) -> None:
    code = ("import os, sys; from pathlib import Path; from distrib.elastic.lease import Lease; "
            "from distrib.rundir import RunDir; Lease(RunDir(Path(sys.argv[1])), 'a', 60.0).take(print); "
            "print('taken', flush=True); os._exit(9)")
    with subprocess.Popen([sys.executable, "-c", code, run.root], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.read() == b"taken\n"  # it has ended; the kernel keeps its number
        lease = Lease(run, "b", 60.0)
        while psutil.Process(holder.pid).status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.01)
        lease.take(quiet)
        assert lease.token == 1
        lease.release()


def held_elsewhere(run: RunDir, sign: int) -> None:
    run.lease.mkdir(parents=True, exist_ok=True)
    (run.lease / "000000004.json").write_text(json.dumps({"host": "far", "process": ELSEWHERE, "sign": sign}))


def test_a_holder_elsewhere_that_gives_no_sign_is_taken_for_gone(run: RunDir) -> None:
    held_elsewhere(run, 1)
    said: list[str] = []
    lease = Lease(run, "b", 1.0)
    lease.take(said.append)
    assert lease.token == 5
    assert "far" in said[0]
    lease.release()


def test_a_holder_elsewhere_that_gives_signs_is_not_disturbed(run: RunDir) -> None:
    held_elsewhere(run, 1)
    timer = threading.Timer(0.3, held_elsewhere, (run, 2))
    timer.start()
    with pytest.raises(CheckpointError, match="on far"):
        Lease(run, "b", 5.0).take(quiet)
    timer.join()


def test_of_many_that_claim_a_token_one_gets_it(run: RunDir) -> None:
    leases = [Lease(run, str(number), 60.0) for number in range(8)]
    got: list[bool] = []
    threads = [threading.Thread(target=lambda lease=lease: got.append(lease.claim(3))) for lease in leases]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(got) == [False] * 7 + [True]
    assert not Lease(run, "late", 60.0).claim(2)
    for lease in leases:
        lease.release()


def test_a_holder_gives_signs(run: RunDir) -> None:
    lease = Lease(run, "a", 0.5)
    lease.take(quiet)
    assert not lease.is_unchanged()
    lease.release()
    assert lease.newest()[1]["released"]


def test_a_full_disk_does_not_keep_a_leader_from_the_lease(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    """The name is taken; who holds it is written when there is room again."""
    lease = Lease(run, "a", 60.0)

    def full(*_: object) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Lease, "_content", full)  # as if writing it failed
        assert lease.claim(3)
    assert lease.newest()[0] == 3
    assert not Lease(run, "b", 60.0).claim(3)
    lease.release()
    assert lease.newest()[1]["released"]


def test_a_clock_that_is_set_does_not_make_a_living_holder_look_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dates of processes are counted from when the machine started, which is moved when the clock is set."""
    before = process_identity()
    monkeypatch.setattr("psutil.Process.create_time", lambda self: time.time())
    monkeypatch.setattr(psutil._pslinux, "boot_time", lambda: 0.0)
    assert is_gone(before) is False
    assert process_identity() == before


def test_who_has_ended_and_was_not_asked_how_yet_is_gone() -> None:
    code = "import json; from distrib.elastic.lease import process_identity; print(json.dumps(process_identity()))"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    identity = json.loads(process.stdout.read())
    try:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert is_gone(identity) is True
    finally:
        process.communicate()


def test_an_identity_is_of_this_process() -> None:
    assert process_identity() == process_identity()
