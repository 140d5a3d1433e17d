"""A real Slurm on nodes of the rig: munged and slurmctld on the last of them, slurmd on the others. No cgroups.

Partition debug is the default; jobs of partition high push its jobs off their nodes, to be requeued.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tests.rig import nodes
from tests.rig.fixture import Fixture, end, new_folder
from tests.rig.nodes import Nodes

READY_S = 30.0
TOOLS = ("slurmctld", "slurmd", "munged", "sbatch", "srun")

CONFIGURATION = """\
ClusterName=rig
SlurmctldHost={head}({head_address})
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
SlurmctldPort=16817
SlurmdPort=16818
ProctrackType=proctrack/linuxproc
TaskPlugin=task/affinity
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
MpiDefault=none
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1,sched_min_interval=0,batch_sched_delay=0,requeue_delay=0
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
ReturnToService=2
JobRequeue=1
SlurmdTimeout=5
SlurmctldTimeout=10
KillWait={kill_wait_s}
InactiveLimit=0
MinJobAge={min_job_age_s}
MaxArraySize=1001
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName={computing} NodeAddr={addresses} CPUs={cpus} CoresPerSocket={cpus} RealMemory=1000 State=UNKNOWN
PartitionName=debug Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime={grace_s}
PartitionName=high Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
"""


def why_not() -> str | None:
    """Why there can be no Slurm here; None if there can."""
    missing = [name for name in TOOLS if shutil.which(name) is None]
    if missing:
        return f"{', '.join(missing)} missing (apt-get install slurm-wlm munge)"
    return nodes.why_not()


class Slurm(Fixture):
    """``count`` computing nodes named node1, node2, ... and one more for the controller. A context manager.

    ``grace_s`` is the time that preempted jobs have to end; ``min_job_age_s`` how long ended ones are remembered.
    """

    def __init__(self, count: int, *, grace_s: int = 5, kill_wait_s: int = 5, min_job_age_s: int = 300) -> None:
        self.nodes = Nodes(count + 1)
        *self.computing, self.head = self.nodes.names
        self.folder = Path()
        self._settings = {"grace_s": grace_s, "kill_wait_s": kill_wait_s, "min_job_age_s": min_job_age_s}
        self._daemons: dict[str, subprocess.Popen[str]] = {}

    @property
    def environment(self) -> dict[str, str]:
        """What Slurm's commands need."""
        return {"SLURM_CONF": str(self.folder / "slurm.conf")}

    def start(self, argv: Sequence[str | Path], environment: Mapping[str, str] | None = None,
              **options: Any) -> subprocess.Popen[str]:
        """Start a program on the controller's node, as a user does on a login node."""
        return self.nodes.start(self.head, argv, {**self.environment, **(environment or {})}, **options)

    def ask(self, *argv: str | Path, timeout_s: float = READY_S) -> str:
        """What a command prints on the controller's node."""
        process = self.start(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        try:
            out, err = process.communicate(timeout=timeout_s)
        finally:
            if process.poll() is None:
                process.kill()
                process.communicate()
        assert process.returncode == 0, f"{argv}: {err}"
        return out

    def jobs(self) -> list[str]:
        """The controller's queue, a line a job: number, state, reason, name."""
        return self.ask("squeue", "--noheader", "--format=%i %T %r %j").splitlines()

    def revive(self, name: str) -> None:
        """Start the daemon of a node that was killed."""
        self._daemons[name].wait(timeout=READY_S)
        self._start_slurmd(name)

    def lose_controller(self) -> None:
        """Kill the controller, and start it again with the state that it saved."""
        self._daemons["slurmctld"].kill()
        self._daemons["slurmctld"].wait(timeout=READY_S)
        self._daemon("slurmctld", self.head, ["slurmctld", "-D"])
        self._until(self._answers, "the controller answers")

    def left(self) -> list[str]:
        """Command lines of what runs on computing nodes beside Slurm's daemons."""
        found = []
        for name in self.computing:
            for pid in set(self.nodes.pids(name)) - {self._daemons[name].pid}:
                with contextlib.suppress(OSError):
                    if words := Path("/proc", str(pid), "cmdline").read_bytes().replace(b"\0", b" ").decode():
                        found.append(f"{name}: {pid} {words}")
        return found

    def _make(self, undo: ExitStack) -> None:
        self.folder = new_folder(undo, "slurm-")  # short, as a socket's path must be
        undo.enter_context(self.nodes)  # leaving them ends what jobs left there
        undo.callback(end, self._daemons.values(), 5.0)
        (self.folder / "state").mkdir()
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        count = len(self.computing)
        network = self.nodes.address(self.head).rpartition(".")[0]
        (self.folder / "slurm.conf").write_text(CONFIGURATION.format(
            head=self.head, head_address=self.nodes.address(self.head), folder=self.folder, cpus=os.cpu_count(),
            computing=f"node[1-{count}]", addresses=f"{network}.[1-{count}]", **self._settings))
        # In a namespace /sys/fs/cgroup is empty: without the plugin's name slurmd looks there, and ends.
        (self.folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\nCgroupAutomount=no\n")
        for name in self.computing:
            (self.folder / f"spool.{name}").mkdir()
        self._daemon("munged", self.head, [
            "munged", "--foreground", "--force", f"--key-file={key}", f"--socket={self.folder}/munge.socket",
            f"--pid-file={self.folder}/munge.pid", f"--log-file={self.folder}/munge.log",
            f"--seed-file={self.folder}/munge.seed", "--num-threads=2"])
        self._until(lambda: (self.folder / "munge.socket").exists(), "munged listens")
        self._daemon("slurmctld", self.head, ["slurmctld", "-D", "-c"])
        for name in self.computing:
            self._start_slurmd(name)
        self._until(self._ready, "all nodes are idle")

    def _start_slurmd(self, name: str) -> None:
        self._daemon(name, name, ["slurmd", "-D", "-N", name])

    def _daemon(self, name: str, node: str, argv: Sequence[str]) -> None:
        with (self.folder / f"{name}.said").open("a") as said:
            self._daemons[name] = self.nodes.start(node, argv, self.environment, stdin=subprocess.DEVNULL, stdout=said,
                                                   stderr=said)

    def _answers(self) -> bool:
        with contextlib.suppress(AssertionError):
            self.jobs()
            return True
        return False

    def _ready(self) -> bool:
        with contextlib.suppress(AssertionError):
            states = self.ask("sinfo", "--noheader", "--Node", "--partition=debug", "--format=%t").split()
            return states == ["idle"] * len(self.computing)
        return False

    def _until(self, condition: Any, what: str) -> None:
        deadline = time.monotonic() + READY_S
        while not condition():
            dead = [name for name, process in self._daemons.items() if process.poll() is not None]
            assert not dead, f"{dead} ended: {self.said(dead[0])}"
            assert time.monotonic() < deadline, f"never: {what}: {self.said('slurmctld')}"
            time.sleep(0.1)

    def said(self, name: str) -> str:
        """The end of a daemon's log, for failures."""
        texts = [path.read_text(errors="replace")[-2000:] for path in self.folder.glob(f"*{name}.log")]
        return "\n".join([*texts, (self.folder / f"{name}.said").read_text(errors="replace")[-2000:]])
