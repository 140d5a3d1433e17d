"""Preflight: does this cluster do what its file says?

One probe for each host is started by the cluster's own launcher, as any job is; what the probes leave in the job's
folder is judged (judge.py) and shown.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType
from typing import NoReturn

from distrib.entry import put
from distrib.errors import ConfigError, WorldError, printable, storage_errors
from launch.cluster import Cluster, load_cluster
from launch.facts import Node, read_node
from launch.finding import Finding
from launch.inbox import say
from launch.job import JobFolder, Start, read_tail
from launch.judge import Verdict, judge
from launch.plan import named_hosts

LIMIT_S = 330.0
"""A job of probes is ended then; each probe ends itself earlier."""
END_S = 20.0
REACH_S = 30.0
"""Starting a program on one host by mpirun takes a second; a host without power answers never."""
AT_ONCE = 16
LOOK = "import sys; print(open(sys.argv[1]).read())"
"""Run on a host that told nothing: shows whether it can be reached, has this Python, and sees the job's folder."""


def run_doctor(path: Path, num_nodes: int | None, overrides: Sequence[str], job: Path | None, backend: str,
               as_json: bool) -> int:
    """Examine a cluster and print what was found: exit code 0 for nothing wrong, 1 for something.

    Raises DistribError (2) if nothing could be examined.
    """
    cluster = load_cluster(path, overrides)
    names = host_names(cluster, num_nodes)
    folder = (job or Path("launch-jobs", f"doctor-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}")).absolute()
    say(f"{cluster.name}: examining {len(names)} node(s) by {cluster.launcher}, about a minute; folder: {folder}")
    examination = _Examination(cluster, path, overrides, folder, backend)
    nodes, lost = examination.run(names), []
    if cluster.launcher == "mpirun" and (silent := [node.name for node in nodes if not node.machine]):
        # One host that can not be started is the end of mpirun for all.
        lost = examination.ask(silent)
        gone = {host for finding in lost for host in finding.hosts}
        rest = [name for name in names if name not in gone]
        nodes = examination.run(rest) if rest else []
    if not lost and all(node.machine is None for node in nodes):
        last = next(reversed(examination.last_words()), "it gave no reason")
        raise WorldError(f"no probe was started: {last.removeprefix('error: ')}", "nothing was examined",
                         f"see {examination.log}")
    verdict = judge(cluster, nodes, lost)
    if as_json:
        put(json.dumps(to_json(cluster, nodes, verdict), indent=2))
    else:
        from launch.show_doctor import show

        show(cluster, nodes, verdict)
    if verdict.findings or job is not None:
        say(f"logs and figures: {folder}")
    else:
        shutil.rmtree(folder, ignore_errors=True)
    return 1 if verdict.findings else 0


def host_names(cluster: Cluster, num_nodes: int | None) -> list[str | None]:
    """The hosts to examine; None for those that Slurm will choose. Raises ConfigError."""
    wished = num_nodes or cluster.nodes
    if cluster.launcher != "mpirun":
        if cluster.launcher == "local" and wished not in (None, 1):
            raise ConfigError(f"--nodes {wished}, but `launcher: local` has one node, this machine",
                              "nothing was started", "leave --nodes out")
        return [None] * (wished or 1)
    return [name for name, _ in named_hosts(cluster, num_nodes)]


def to_json(cluster: Cluster, nodes: Sequence[Node], verdict: Verdict) -> dict[str, object]:
    """Plain values, for ``launch doctor --json``; docs/doctor.md describes them."""
    return {
        "cluster": cluster.name,
        "ok": not verdict.findings,
        "findings": [{"check": finding.check, "hosts": list(finding.hosts), "fact": finding.fact,
                      "cause": finding.cause, "remedy": finding.remedy} for finding in verdict.findings],
        "notes": list(verdict.notes),
        "nodes": [node.model_dump(mode="json") for node in nodes],
    }


class _Examination:
    def __init__(self, cluster: Cluster, path: Path, overrides: Sequence[str], folder: Path, backend: str) -> None:
        self._cluster, self._path, self._overrides = cluster, path, overrides
        self._folder, self._backend = folder, backend
        self._number = 0
        with storage_errors(f"the folder {folder} could not be made", "nothing was started"):
            folder.mkdir(parents=True, exist_ok=True)

    @property
    def log(self) -> Path:
        """What the newest job's launcher said."""
        return self._folder / f"job-{self._number}.log"

    def last_words(self) -> tuple[str, ...]:
        """The last lines of that."""
        return read_tail(self.log, 5)

    def run(self, names: Sequence[str | None]) -> list[Node]:
        """Run a probe on each host to its end; what they left, by rank."""
        self._number += 1
        job = self._folder / f"job-{self._number}"
        facts = job / "facts"
        with storage_errors(f"the folder {facts} could not be made", "nothing was started"):
            facts.mkdir(parents=True)
        if known := [name for name in names if name is not None]:
            (facts / "hosts.json").write_text(json.dumps(known))
        with self.log.open("wb") as log, _ended(self._start(names, job, facts, log)) as process, \
                contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(LIMIT_S)
        return [read_node(facts, rank, name) for rank, name in enumerate(names)]

    def _start(self, names: Sequence[str | None], job: Path, facts: Path, log: object) -> subprocess.Popen[bytes]:
        local = self._cluster.launcher == "local"
        # A probe has its node for itself: all its cores are for computing.
        own = ["threads_per_rank=null", "comm_cores=0", "ranks_per_node=auto", "ranks_per_numa_node=null",
               "stop_grace_s=5", "grace_s=5"]
        if self._cluster.launcher == "mpirun":
            own += [f"hosts={json.dumps(list(names))}", "nodes=null"]
        words = [sys.executable, "-m", "launch", "run", str(self._path), "--ranks", str(len(names)),
                 *(["--logs", str(job)] if local else ["--nodes", str(len(names)), "--job", str(job)]),
                 *(word for override in (*self._overrides, *own) for word in ("--set", override)),
                 "--", sys.executable, "-m", "launch.visit", str(facts), self._backend]
        return subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log)  # type: ignore[call-overload,no-any-return]

    def ask(self, hosts: Sequence[str]) -> list[Finding]:
        """Try hosts one by one that told nothing; findings of those that can not take part."""
        from launch.mpirun import find_mpi, make_starter, starter_argv

        mpi = find_mpi(self._cluster)
        word, secret = self._folder / "word", secrets.token_hex(8)
        word.write_text(secret)
        look = [sys.executable, "-I", "-S", "-c", LOOK, str(word)]

        def ask_one(host: str) -> Finding | None:
            start = Start((host,), (1,), host, 0)
            environment = make_starter(self._cluster, mpi, start, JobFolder(self._folder), 0).environment
            argv = starter_argv(mpi, (host,), (1,), self._cluster.mpirun.options, look, os.geteuid() == 0)
            try:
                done = subprocess.run(argv, env=environment, capture_output=True, text=True, errors="replace",
                                      timeout=REACH_S, check=False, stdin=subprocess.DEVNULL)
            except subprocess.TimeoutExpired:
                return Finding("reach", (host,), f"it does not answer within {REACH_S:g} s",
                               "it is off, or its network is", f"try: ssh {host} true")
            return understand(host, done.returncode, done.stdout, done.stderr, secret)

        with ThreadPoolExecutor(AT_ONCE) as pool:
            return [finding for finding in pool.map(ask_one, hosts) if finding is not None]


def understand(host: str, code: int, out: str, err: str, secret: str) -> Finding | None:
    """What one host's answer means; None: it can take part. Pure."""
    if code == 0 and secret in out:
        return None
    if "FileNotFoundError" in err or "PermissionError" in err or code == 0:
        return Finding("folder", (host,), "it does not see the job's folder",
                       "the file system is not mounted there, or is another one",
                       "mount it there, or choose another folder with --job")
    if sys.executable in err:
        return Finding("reach", (host,), f"it has no {sys.executable}", "Python lies in a folder that is not shared",
                       "install the environment there under the same path, or on the shared folder")
    words = [line.strip() for line in err.splitlines() if line.strip(" -*")]
    said = next((line for line in words if line.startswith("ssh:") or "ermission denied" in line or "key verification"
                 in line), words[0] if words else f"exit code {code}")
    return Finding("reach", (host,), printable(f"no program can be started there: {said}"),
                   "it is off, its name is wrong, or ssh asks for a password", f"try: ssh {host} true")


@contextlib.contextmanager
def _ended(process: subprocess.Popen[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """Whatever happens, also SIGTERM, the launcher below is asked to end, and ends."""
    def stop(number: int, _: FrameType | None) -> NoReturn:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield process
    finally:
        signal.signal(signal.SIGTERM, before)
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(END_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


