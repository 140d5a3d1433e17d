"""Whether hosts can be reached by ssh and see what their ranks need, asked before mpirun is: it may wait for ever."""

from __future__ import annotations

import shlex
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import IO

from distrib.errors import MissingPartError, WorldError, printable

CONNECT_S = 10
ANSWER_S = 30.0
"""For one host, from when it is asked."""
AT_ONCE = 256
LIMIT_S = 120.0
"""For all hosts together."""
LOOK_S = 0.02
SSH = ("ssh", "-oBatchMode=yes", f"-oConnectTimeout={CONNECT_S}")


def check_hosts(hosts: Sequence[str], question: Sequence[str]) -> None:
    """Run ``question`` on every other host; exit code 0 is the right answer. Raises WorldError naming each host.

    Up to AT_ONCE hosts are asked at a time, and after LIMIT_S nobody any more: 256 hosts that hang cost ANSWER_S.
    """
    troubles = _ask([host for host in hosts if not is_here(host)], shlex.join(question))
    if troubles:
        told = "; ".join(f"{host}: {trouble}" for host, trouble in list(troubles.items())[:5])
        more = f"; and {len(troubles) - 5} more" if len(troubles) > 5 else ""
        raise WorldError(f"{len(troubles)} of {len(hosts)} hosts can not take ranks: {told}{more}",
                         "nothing was started", f"try `ssh {next(iter(troubles))} true`; leave out of the cluster file "
                         "what does not answer")


def is_here(host: str) -> bool:
    """Whether a name means this machine."""
    if host.partition(".")[0] == socket.gethostname().partition(".")[0]:
        return True
    try:
        family, _, _, _, where = socket.getaddrinfo(host, 0, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind(where)  # only an own address can be bound
    except OSError:
        return False
    return True


def _ask(hosts: Sequence[str], question: str) -> dict[str, str]:
    """What is wrong with each host that does not answer rightly, in the order of ``hosts``."""
    troubles: dict[str, str] = {}
    waiting, asked = list(reversed(hosts)), dict[str, _Question]()
    limit = time.monotonic() + LIMIT_S
    try:
        while waiting or asked:
            if time.monotonic() >= limit:
                troubles |= dict.fromkeys([*asked, *waiting], f"no answer; all hosts together have {LIMIT_S:g} s")
                break
            while waiting and len(asked) < AT_ONCE:
                asked[waiting[-1]] = _Question(waiting[-1], question)
                waiting.pop()
            for host, each in list(asked.items()):
                if each.is_over() and (trouble := asked.pop(host).trouble()):
                    troubles[host] = trouble
            time.sleep(LOOK_S)
    finally:
        for each in asked.values():
            each.end()
    return {host: troubles[host] for host in hosts if host in troubles}


class _Question:
    """One ssh. What it says on stderr goes to a file: a pipe has no end while a shared connection lives on below it."""

    def __init__(self, host: str, question: str) -> None:
        self._until = time.monotonic() + ANSWER_S
        with ExitStack() as undo:
            self._said: IO[bytes] = undo.enter_context(tempfile.TemporaryFile())
            try:
                self._process = subprocess.Popen([*SSH, host, question], stdin=subprocess.DEVNULL,
                                                 stdout=subprocess.DEVNULL, stderr=self._said)
            except FileNotFoundError as error:
                raise MissingPartError("ssh is not installed", "nothing was started", "apt-get install openssh-client, "
                                       "or set mpirun.ssh: false where mpirun does without") from error
            except OSError as error:
                raise WorldError(f"ssh can not be started: {error.strerror}", "nothing was started",
                                 "check the limits of processes and open files (ulimit -a)") from error
            undo.pop_all()

    def is_over(self) -> bool:
        return self._process.poll() is not None or time.monotonic() >= self._until

    def trouble(self) -> str | None:
        """What is wrong, after the end or the time; None: nothing is."""
        code = self._process.poll()
        self._said.seek(0)
        said = self._said.read(1 << 16).decode(errors="replace")
        self.end()
        if code is None:
            return f"no answer within {ANSWER_S:g} s"
        if code == 0:
            return None
        lines = [line for line in said.splitlines() if line.strip()] or [f"exit code {code}"]
        return printable(lines[-1].removeprefix("error: "))[:300]

    def end(self) -> None:
        """Kill it if it still lives."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        self._said.close()
