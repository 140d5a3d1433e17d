"""Whether hosts can be reached by ssh and see what their ranks need, asked before mpirun is: it may wait for ever."""

from __future__ import annotations

import shlex
import socket
import subprocess
import time
from collections.abc import Sequence

from distrib.errors import MissingPartError, WorldError, printable

CONNECT_S = 10
ANSWER_S = 30.0
AT_ONCE = 64
SSH = ("ssh", "-oBatchMode=yes", f"-oConnectTimeout={CONNECT_S}")


def check_hosts(hosts: Sequence[str], question: Sequence[str]) -> None:
    """Run ``question`` on every other host; exit code 0 is the right answer. Raises WorldError naming each host."""
    troubles: dict[str, str] = {}
    others = [host for host in hosts if not is_here(host)]
    for first in range(0, len(others), AT_ONCE):
        troubles |= _ask(others[first:first + AT_ONCE], shlex.join(question))
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
    """What is wrong with each host that does not answer rightly."""
    troubles = {}
    asked = {}
    try:
        for host in hosts:
            asked[host] = subprocess.Popen([*SSH, host, question], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                           stderr=subprocess.PIPE, text=True, errors="replace")
        deadline = time.monotonic() + ANSWER_S
        for host, process in asked.items():
            try:
                _, said = process.communicate(timeout=max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                troubles[host] = f"no answer within {ANSWER_S:g} s"
                continue
            if process.returncode:
                lines = [line for line in said.splitlines() if line.strip()] or [f"exit code {process.returncode}"]
                troubles[host] = printable(lines[-1].removeprefix("error: "))[:300]
    except FileNotFoundError as error:
        raise MissingPartError("ssh is not installed", "nothing was started",
                               "apt-get install openssh-client, or set mpirun.ssh: false where mpirun does without"
                               ) from error
    finally:
        for process in asked.values():
            if process.poll() is None:
                process.kill()
            process.wait()
            assert process.stderr is not None
            process.stderr.close()
    return troubles
