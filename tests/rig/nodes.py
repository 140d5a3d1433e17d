"""Nodes made of network namespaces, joined by a bridge that lives in a namespace of its own.

Nothing enters the machine's own network. Needs root and iproute2.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tests.rig.fixture import Fixture, new_folder


def why_not() -> str | None:
    """Why there can be no nodes here; None if there can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None or shutil.which("tc") is None:
        return "ip and tc are missing (apt-get install iproute2)"
    done = subprocess.run(["unshare", "--net", "true"], capture_output=True, check=False)
    return None if done.returncode == 0 else "this kernel makes no network namespaces"


def make_quota(name: str, cores: float) -> tuple[Path, bool]:
    """A new control group whose processes get no more than so many cores; and whether it is of cgroup v1."""
    v1 = Path("/sys/fs/cgroup/cpu/cpu.shares").exists()
    group = Path("/sys/fs/cgroup/cpu" if v1 else "/sys/fs/cgroup", name)
    group.mkdir()
    quota, period = round(cores * 100_000), 100_000
    if v1:
        (group / "cpu.cfs_period_us").write_text(str(period))
        (group / "cpu.cfs_quota_us").write_text(str(quota))
    else:
        (group / "cpu.max").write_text(f"{quota} {period}")
    return group, v1


SSH = """\
#!/bin/sh
while :; do case "$1" in -[bcDEeFIiJLlmOopQRSWw]) shift 2;; -*) shift;; *) break;; esac; done
node=${1#*@}; shift
. "FOLDER/$node"
export look
exec ip netns exec "PREFIX-$node" unshare --uts sh -c 'eval "$look"; hostname "$0" && exec "$@"' "$node" \
  env -i HOME=/root USER=root LOGNAME=root PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin $more sh -c "$*"
"""


class Nodes(Fixture):
    """``count`` nodes named node1, node2, ... A context manager: leaving it ends what runs there, by pid."""

    def __init__(self, count: int, network: str = "10.77.0") -> None:
        self.names = [f"node{number}" for number in range(1, count + 1)]
        self._network = network
        self._groups: list[Path] = []
        self.prefix = f"rig{os.getpid()}"
        """A node's namespace is named PREFIX-NODE."""

    def address(self, name: str) -> str:
        return f"{self._network}.{self.names.index(name) + 1}"

    def start(self, name: str, argv: Sequence[str | Path], environment: Mapping[str, str] | None = None,
              **options: Any) -> subprocess.Popen[str]:
        """Start a program on a node, under the node's host name and with its /etc/hosts."""
        inside = ["ip", "netns", "exec", self._space(name), "unshare", "--uts", "sh", "-c",
                  "eval \"$look\"; hostname \"$0\" && exec \"$@\"", name, *map(str, argv)]
        inside = ["sh", "-c", '. "$0"; export look; exec env $more "$@"', str(self._folder / name), *inside]
        return subprocess.Popen(inside, env={**os.environ, **(environment or {})}, text=True, **options)

    def ssh(self, folder: Path) -> dict[str, str]:
        """Environment in which ``ssh NODE COMMAND`` runs a shell's command on a node, in a fresh login's environment.

        ``folder`` takes the stand-in for ssh.
        """
        script = folder / "ssh"
        script.write_text(SSH.replace("PREFIX", self.prefix).replace("FOLDER", str(self._folder)))
        script.chmod(0o755)
        return {"PATH": f"{folder}:{os.environ['PATH']}"}

    def shape(self, name: str, rate: str | None) -> None:
        """Limit a node's link both ways, such as "100mbit"; None lifts the limit."""
        for space, device in ((self._space(name), "eth0"), (self._space("switch"), f"v{name}")):
            with contextlib.suppress(subprocess.CalledProcessError):
                _ip("netns", "exec", space, "tc", "qdisc", "del", "dev", device, "root")
            if rate is not None:
                _ip("netns", "exec", space, "tc", "qdisc", "add", "dev", device, "root", "tbf", "rate", rate,
                    "burst", "256k", "latency", "20ms")

    def hold(self, name: str, cores: float) -> None:
        """Give what is started on a node from now on no more than so many cores, by a CPU quota. Raises OSError."""
        group, v1 = make_quota(self._space(name), cores)
        self._groups.append(group)
        # In a namespace /sys/fs/cgroup is empty, where a real node sees its own, and a caller of ssh is in one too.
        see = ("mount -t tmpfs none /sys/fs/cgroup; mkdir /sys/fs/cgroup/cpu; "
               "mount -t cgroup -o cpu none /sys/fs/cgroup/cpu" if v1 else "mount -t cgroup2 none /sys/fs/cgroup")
        self._begin(name, f"look={see!r}\n[ -e {group} ] || eval \"$look\"\necho $$ > {group}/cgroup.procs")

    def shift_clock(self, name: str, seconds: float, library: str) -> None:
        """Have what is started on a node from now on see a wrong time, by libfaketime."""
        self._begin(name, f"more='LD_PRELOAD={library} FAKETIME={seconds:+.1f} FAKETIME_DONT_FAKE_MONOTONIC=1 "
                          "NO_FAKE_STAT=1'")

    def misname(self, name: str, address: str) -> None:
        """Have a node's own /etc/hosts give a wrong address for its name."""
        hosts = Path("/etc/netns", self._space(name), "hosts")
        hosts.write_text(hosts.read_text().replace(f"{self.address(name)} {name}\n", f"{address} {name}\n"))

    def _begin(self, name: str, line: str) -> None:
        with (self._folder / name).open("a") as file:
            file.write(f"{line}\n")

    def cut(self, name: str, *, cut: bool = True) -> None:
        """Take a node's cable out, or put it back."""
        _ip("-n", self._space("switch"), "link", "set", f"v{name}", "down" if cut else "up")

    def kill(self, name: str) -> None:
        """Kill everything that runs on a node, at once: its power fails."""
        for pid in self.pids(name):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _space(self, name: str) -> str:
        return f"{self.prefix}-{name}"

    def pids(self, name: str) -> list[int]:
        """Everything that runs on a node."""
        done = subprocess.run(["ip", "netns", "pids", self._space(name)], capture_output=True, text=True, check=False)
        return [int(word) for word in done.stdout.split()]

    def _make(self, undo: ExitStack) -> None:
        self._folder = new_folder(undo, "rig")
        undo.callback(self._remove)
        for name in self.names:
            self._begin(name, "more= look=")
        switch = self._space("switch")
        _ip("netns", "add", switch)
        _ip("-n", switch, "link", "add", "bridge", "type", "bridge")
        _ip("-n", switch, "link", "set", "bridge", "up")
        hosts = "127.0.0.1 localhost\n" + "".join(f"{self.address(name)} {name}\n" for name in self.names)
        for name in self.names:
            space = self._space(name)
            _ip("netns", "add", space)
            etc = Path("/etc/netns", space)
            etc.mkdir(parents=True)
            (etc / "hosts").write_text(hosts)
            _ip("link", "add", f"v{name}", "netns", switch, "type", "veth", "peer", "name", "eth0", "netns", space)
            _ip("-n", switch, "link", "set", f"v{name}", "master", "bridge", "up")
            _ip("-n", space, "link", "set", "lo", "up")
            _ip("-n", space, "addr", "add", f"{self.address(name)}/24", "dev", "eth0")
            _ip("-n", space, "link", "set", "eth0", "up")

    def _remove(self) -> None:
        for number in (signal.SIGTERM, signal.SIGKILL):
            pids = [pid for name in self.names for pid in self.pids(name)]
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
            if pids:
                time.sleep(0.3)
        for name in (*self.names, "switch"):
            subprocess.run(["ip", "netns", "del", self._space(name)], capture_output=True, check=False)
            shutil.rmtree(Path("/etc/netns", self._space(name)), ignore_errors=True)
        for group in self._groups:
            with contextlib.suppress(OSError):
                group.rmdir()
        with contextlib.suppress(OSError):
            Path("/etc/netns").rmdir()


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)
