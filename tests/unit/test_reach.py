"""The ssh check, with a stand-in for ssh; the hosts' addresses are nobody's."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from distrib.errors import WorldError
from launch import reach

HOSTS = [f"198.51.100.{number}" for number in range(1, 101)]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(reach, "ANSWER_S", 10.0)
    return tmp_path


def stand_in(folder: Path, script: str) -> None:
    ssh = folder / "ssh"
    ssh.write_text(f"#!/bin/sh\n{script}\n")
    ssh.chmod(0o755)


def test_a_hundred_hosts_are_asked_at_once(folder: Path) -> None:
    stand_in(folder, "echo >> asked; [ $(wc -l < asked) -lt 100 ] || touch all\n"
                     "while [ ! -e all ]; do sleep 0.5; done")
    reach.check_hosts(HOSTS, ["true"])


def test_a_shared_connection_that_lives_on_is_not_waited_for(folder: Path) -> None:
    stand_in(folder, "sleep 1000 & echo $! > pid")
    try:
        reach.check_hosts(HOSTS[:1], ["true"])
    finally:
        os.kill(int((folder / "pid").read_text()), signal.SIGKILL)


def test_all_hosts_together_have_a_limit(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reach, "AT_ONCE", 2)
    monkeypatch.setattr(reach, "LIMIT_S", 2.0)
    stand_in(folder, "echo $$ >> asked; exec sleep 1000")
    with pytest.raises(WorldError, match=r"^4 of 4 hosts can not take ranks: 198\.51\.100\.1: no answer; all hosts "
                                         r"together have 2 s; 198\.51\.100\.2: "):
        reach.check_hosts(HOSTS[:4], ["true"])
    pids = (folder / "asked").read_text().split()
    assert len(pids) == 2
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]


def test_each_host_is_named_with_its_last_word(folder: Path) -> None:
    stand_in(folder, 'for host; do case $host in *.7) echo first >&2; echo "error: gone" >&2; exit 255;; esac; done')
    with pytest.raises(WorldError, match=r"1 of 100 hosts can not take ranks: 198\.51\.100\.7: gone\. "):
        reach.check_hosts(HOSTS, ["true"])
