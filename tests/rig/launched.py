"""Runs whose ranks a real launcher starts, for the faults of tests/rig/faults.py: `LAUNCHERS`."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from subprocess import PIPE, Popen
from typing import TextIO

from launch.local import free_port
from launch.processes import remove_shared_memory
from tests.rig import nodes as nodes_rig
from tests.rig import slurm as slurm_rig
from tests.rig.faults import ROOT, World
from tests.rig.nodes import Nodes
from tests.rig.slurm import Slurm

LAUNCHERS = ("local", "mpirun.openmpi", "mpirun.mpich", "slurm", "torchrun")
CLUSTERS = {
    "local": "launcher: local\nranks_per_node: {size}\n",
    "slurm": "launcher: slurm\nnodes: {size}\nranks_per_node: 1\n",
}
MPIRUN = "launcher: mpirun\nhosts: ['node[1-{size}]']\nranks_per_node: 1\nmpirun: {{program: {program}}}\n"
COMMON = "allocator: system\ngrace_s: 3\nthreads_per_rank: 1\nrestarts: 3\nrestart_wait_s: 0\n"
Begin = Callable[[list[str], Mapping[str, str], TextIO], "Popen[str]"]


class LaunchedWorld(World):
    """``begin`` starts a launcher; its ranks are found by their command line. ``nodes``: where they are, if apart.

    LAUNCH in the launcher's words stands for how often it was started.
    """

    def __init__(self, run: Path, size: int, arguments: Sequence[str | Path], launcher: Sequence[str | Path],
                 begin: Begin, nodes: Nodes | None) -> None:
        super().__init__(run, size, arguments)
        self._launcher, self._begin, self.nodes = launcher, begin, nodes
        self._launches = 0

    def launch(self) -> None:
        self._launches += 1
        argv = [*(str(word).replace("LAUNCH", str(self._launches)) for word in self._launcher),
                sys.executable, "-m", "distrib", "train", *map(str, self.arguments)]
        with self._logs.with_name(f"{self._logs.name}.0.err").open("a") as err:
            self.ranks = [self._begin(argv, {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}, err)]

    def signal(self, number: int, *ranks: int) -> None:
        pids = self.pids()
        for rank in ranks:
            os.kill(pids[rank], number)

    def pids(self) -> dict[int, int]:
        """rank -> the process that trains."""
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError, ValueError):
                words = (folder / "cmdline").read_bytes().split(b"\0")
                if words[1:4] == [b"-m", b"distrib", b"train"] and str(self.run).encode() in words:
                    environment = dict(line.partition(b"=")[::2] for line in
                                       (folder / "environ").read_bytes().split(b"\0"))
                    found[int(environment[b"RANK"])] = int(folder.name)
        return found

    def wait(self, *, without: Sequence[int] = ()) -> list[int]:
        """The launcher's exit code."""
        return super().wait()

    def _end(self) -> None:
        pids = list(self.pids().values())
        self.ranks[0].terminate()
        with contextlib.suppress(Exception):
            self.ranks[0].wait(20.0)
        super()._end()
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, 9)
            remove_shared_memory(pid)


@contextlib.contextmanager
def launched(launcher: str, run: Path, size: int, arguments: Sequence[str | Path]) -> Iterator[LaunchedWorld]:
    """A run of so many ranks under one of `LAUNCHERS`; on nodes of their own with mpirun and Slurm."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        nodes = None

        def here(argv: list[str], environment: Mapping[str, str], err: TextIO) -> Popen[str]:
            return Popen(argv, stdout=PIPE, stderr=err, text=True, env={**os.environ, **environment}, cwd=folder,
                         start_new_session=True)

        begin: Begin = here
        words: list[str | Path] = [sys.executable, "-m", "launch", "run", folder / "cluster.yaml", "--elastic",
                                   "--job", folder / "job-LAUNCH", "--"]
        if launcher == "torchrun":
            words = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(size), "--max-restarts",
                     "3", "--master-port", str(free_port()), "--no-python", "--"]
        elif launcher == "slurm":
            slurm = stack.enter_context(Slurm(size))
            nodes = slurm.nodes

            def on_login_node(argv: list[str], environment: Mapping[str, str], err: TextIO) -> Popen[str]:
                return slurm.start(argv, {**environment, "TMPDIR": str(folder)}, stdout=PIPE, stderr=err, cwd=folder)

            begin = on_login_node
        elif launcher != "local":
            nodes = stack.enter_context(Nodes(size, "10.78.0"))
            (folder / "bin").mkdir()
            ssh = nodes.ssh(folder / "bin")
            mpi = nodes

            def on_first_node(argv: list[str], environment: Mapping[str, str], err: TextIO) -> Popen[str]:
                return mpi.start("node1", argv, {**environment, **ssh, "TMPDIR": str(folder)}, stdout=PIPE, stderr=err,
                                 cwd=folder)

            begin = on_first_node
        text = CLUSTERS.get(launcher, MPIRUN).format(size=size, program=launcher)
        (folder / "cluster.yaml").write_text(text + COMMON)
        world = LaunchedWorld(run, size, arguments, words, begin, nodes)
        yield stack.enter_context(world)


def why_not(launcher: str) -> str | None:
    """Why a launcher can not be tried here; None if it can."""
    if launcher in ("local", "torchrun"):
        return None
    if launcher == "slurm":
        return slurm_rig.why_not()
    return nodes_rig.why_not() or (None if shutil.which(launcher) else f"{launcher} is not installed")
