"""Faults that befall an elastic run, as data: who does what to which ranks, and what must become of the run.

`run_fault` trains with real processes, does the fault in the middle, and tells what happened. The tests and
benchmarks/faults.py share it.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Self, TextIO

from distrib.checkpoint import newest_checkpoint
from distrib.models.weights import weights_sha256
from distrib.rundir import RunDir
from launch.local import free_port
from launch.processes import remove_shared_memory
from tests.rig.disk import SmallDisk, small_disk
from tests.rig.nodes import Nodes, make_quota

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 240.0
SILENCE_S = 2.0
"""comm.silence_s of the runs here."""
AT_STEP = 30


class World:
    """The ranks of one elastic run on this machine. A context manager: leaving it ends them all."""

    def __init__(self, run: Path, size: int, arguments: Sequence[str | Path], *, program: Sequence[str] = (),
                 elastic: bool = True, inside: Path | None = None, logs: Path | None = None) -> None:
        """``inside``: the run's folder as ranks see it. ``logs``: what names the files of their stderr begin with."""
        self.run, self.size, self.arguments = run, size, [*arguments, "--run", inside or run]
        self._logs = logs or run
        self._hurry = self._logs.with_name(f"{self._logs.name}.hurry")
        self._program = list(program) or [sys.executable, "-m", "distrib"]
        self._elastic, self._port = elastic, free_port()
        self.ranks: list[subprocess.Popen[str]] = []

    def __enter__(self) -> Self:
        self.launch()
        return self

    def launch(self) -> None:
        for rank in range(self.size):
            self.start({"RANK": str(rank), "WORLD_SIZE": str(self.size), "LOCAL_RANK": str(rank),
                        "LOCAL_WORLD_SIZE": str(self.size), "MASTER_ADDR": "127.0.0.1",
                        "MASTER_PORT": str(self._port), "LAUNCH_ELASTIC": str(int(self._elastic))})

    def restart(self) -> None:
        """Start the run again, after all its ranks have ended."""
        self._end()
        self.ranks, self._port = [], free_port()
        self.launch()

    def __exit__(self, *_: object) -> None:
        self._end()

    def _end(self) -> None:
        for process in self.ranks:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            process.communicate()
            remove_shared_memory(process.pid)

    def start(self, environment: Mapping[str, str], *words: str) -> None:
        argv = [*self._program, "train", *map(str, self.arguments), "--json", *words]
        number = len(self.ranks)
        with self._logs.with_name(f"{self._logs.name}.{number}.err").open("w") as err:
            self.ranks.append(self.spawn(argv, {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT),
                                                "QUICK_WHEN": str(self._hurry), **environment}, err))

    def spawn(self, argv: list[str], environment: Mapping[str, str], err: TextIO) -> subprocess.Popen[str]:
        return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=err, text=True,
                                env={**os.environ, **environment}, start_new_session=True)

    def join(self) -> None:
        """Start one rank more."""
        self.start({}, "--join")

    def hurry(self) -> None:
        """From now on ranks that were slowed are as quick as others."""
        self._hurry.touch()

    def signal(self, number: int, *ranks: int) -> None:
        for rank in ranks:
            assert self.ranks[rank].poll() is None, self.errors()
            os.kill(self.ranks[rank].pid, number)

    def records(self) -> list[dict[str, Any]]:
        """The step records of metrics.jsonl."""
        try:
            lines = (self.run / "metrics.jsonl").read_text().splitlines()
        except FileNotFoundError:
            return []
        found = []
        for line in lines:
            with contextlib.suppress(ValueError):
                record = json.loads(line)
                if record.get("event") == "step":
                    found.append(record)
        return found

    def until_step(self, step: int) -> None:
        self.until(lambda: bool(self.records()) and self.records()[-1]["step"] >= step)

    def until(self, holds: Callable[[], bool]) -> None:
        deadline = time.monotonic() + LIMIT_S
        while not holds():
            assert time.monotonic() < deadline, self.errors()
            assert any(process.poll() is None for process in self.ranks), self.errors()
            time.sleep(0.005)

    def wait(self, *, without: Sequence[int] = ()) -> list[int]:
        """Exit codes of all ranks but those in ``without``, which may hang."""
        deadline = time.monotonic() + LIMIT_S
        return [process.wait(deadline - time.monotonic()) for rank, process in enumerate(self.ranks)
                if rank not in without]

    def errors(self) -> str:
        files = sorted(self._logs.parent.glob(f"{self._logs.name}.*.err"))
        return "\n".join(f"{path.name}: {path.read_text()[-1500:]}" for path in files)


class NodesWorld(World):
    """A rank on each of several nodes, all of which see one run folder."""

    def __init__(self, nodes: Nodes, run: Path, arguments: Sequence[str | Path]) -> None:
        super().__init__(run, len(nodes.names), arguments)
        self.nodes = nodes
        for name in nodes.names:
            nodes.shape(name, "1gbit")

    def spawn(self, argv: list[str], environment: Mapping[str, str], err: TextIO) -> subprocess.Popen[str]:
        here = {"MASTER_ADDR": self.nodes.address("node1"), "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
        return self.nodes.start(self.nodes.names[len(self.ranks)], argv, {**environment, **here},
                                 stdout=subprocess.PIPE, stderr=err, start_new_session=True, cwd=ROOT)


class DiskWorld(World):
    """Ranks whose run folder is on a small disk."""

    def __init__(self, disk: SmallDisk, run: Path, size: int, arguments: Sequence[str | Path]) -> None:
        super().__init__(disk.path / "run", size, arguments, inside=disk.inside / "run", logs=run,
                         program=(*disk.enter, sys.executable, "-m", "distrib"))
        self.disk = disk


@dataclass(frozen=True)
class Fault:
    """``act`` does it, when the run is at `AT_STEP`; ``lost`` ranks may end as they like, or hang."""

    name: str
    act: Callable[[Any], None]
    """Of the `World`; of a `NodesWorld` or a `DiskWorld` where that is asked for."""
    size: int = 3
    lost: tuple[int, ...] = ()
    overrides: tuple[str, ...] = ()
    silent: bool = False
    """Whether it is seen only by its silence."""
    program: tuple[str, ...] = ()
    where: str = "here"
    """Or nodes: each rank has a node of its own; or disk: the run's folder is on a small one."""
    again: bool = False
    """Whether all ranks end by it, and the run is started again."""
    says: str = ""
    """What some rank says of it."""
    most_done_again: int = 0
    """Most steps that may be lost: those since the newest whole checkpoint."""


@dataclass
class Outcome:
    """What became of a run that met a fault."""

    finished: bool
    weights_sha256: str
    codes: list[int]
    seconds: float
    """From the fault to the next committed step that no rank was lost from, and that was not there before."""
    done_again: int
    """Committed steps that were lost, and done again."""
    step_s: float
    """Median length of a step before."""
    repeated: int
    missing: int
    """Samples, by the ledger."""
    errors: str = field(repr=False, default="")


def kill(*ranks: int) -> Callable[[World], None]:
    return lambda world: world.signal(signal.SIGKILL, *ranks)


def stop(*ranks: int) -> Callable[[World], None]:
    return lambda world: world.signal(signal.SIGSTOP, *ranks)


def kill_one_and_then(first: int, second: int) -> Callable[[World], None]:
    """The second dies while the others regroup without the first."""
    def act(world: World) -> None:
        world.signal(signal.SIGKILL, first)
        time.sleep(0.04)
        world.signal(signal.SIGKILL, second)
    return act


def kill_in_a_checkpoint(world: World) -> None:
    world.until(lambda: any((world.run / "checkpoints").glob(".*.partial")))
    world.signal(signal.SIGKILL, 0)


def add(world: World) -> None:
    """Done when the others let it in: what it imports before keeps nobody waiting."""
    world.join()
    world.until(lambda: "joined: 1 rank" in world.errors())
    world.hurry()


def terminate(world: World) -> None:
    world.signal(signal.SIGTERM, *range(world.size))
    world.wait()


def ask_to_end(rank: int) -> Callable[[World], None]:
    """As when one node is preempted: that rank ends, and the others go on."""
    def act(world: World) -> None:
        world.signal(signal.SIGTERM, rank)
        assert world.ranks[rank].wait(60.0) == 128 + signal.SIGTERM
    return act


def kill_all_and_damage(damage: Callable[[Path], None]) -> Callable[[World], None]:
    """All ranks die, and a file of the newest checkpoint is not what was written."""
    def act(world: World) -> None:
        checkpoints = world.run / "checkpoints"
        world.until(lambda: len(list(checkpoints.glob("step-*"))) >= 2)
        world.signal(signal.SIGKILL, *range(world.size))
        world.wait()
        damage(max(max(checkpoints.glob("step-*")).glob("*.safetensors")))
    return act


def flip_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut_short(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


@contextlib.contextmanager
def held(pid: int, cores: float) -> Iterator[None]:
    """A process gets no more than so many cores."""
    group, _ = make_quota(f"held-{os.getpid()}", cores)
    procs = "cgroup.procs"
    try:
        Path(group, procs).write_text(str(pid))
        yield
    finally:
        for one in Path(group, procs).read_text().split():
            Path(group.parent, procs).write_text(one)
        group.rmdir()


def hold_back(world: World) -> None:
    """Rank 1 gets half a core for five seconds."""
    with held(world.ranks[1].pid, 0.5):
        time.sleep(5.0)


def fill_disk(world: DiskWorld) -> None:
    filler = world.disk.fill()
    world.until(lambda: "could not be written" in world.errors())
    filler.unlink()


def fill_disk_and_kill(*ranks: int) -> Callable[[DiskWorld], None]:
    """Ranks die while nothing can be written."""
    def act(world: DiskWorld) -> None:
        filler = world.disk.fill()
        world.signal(signal.SIGKILL, *ranks)
        world.until(lambda: "lost: 1 rank" in world.errors())
        time.sleep(1.0)
        filler.unlink()
    return act


def kill_a_writer(world: NodesWorld) -> None:
    """A node dies while it writes its part of a checkpoint."""
    world.until(lambda: any((world.run / "checkpoints").glob(".*.2.part")))
    world.nodes.kill("node2")


def kill_node(name: str) -> Callable[[NodesWorld], None]:
    return lambda world: world.nodes.kill(name)


def cut(name: str, seconds: float | None = None) -> Callable[[NodesWorld], None]:
    """Take a cable out; and put it back after a while."""
    def act(world: NodesWorld) -> None:
        world.nodes.cut(name)
        if seconds is not None:
            time.sleep(seconds)
            world.nodes.cut(name, cut=False)
    return act


def slow_cable(world: NodesWorld) -> None:
    """From 1 Gbit/s to one hundredth."""
    world.nodes.shape("node2", "10mbit")


def flip(*ranks: int) -> Callable[[World], None]:
    return lambda world: world.signal(signal.SIGUSR2, *ranks)


def ends(rank: int, point: str) -> tuple[str, ...]:
    """Ranks of which one ends at one of tests.rig.early's points."""
    return sys.executable, "-m", "tests.rig.early", str(rank), point


def ends_by_itself(rank: int) -> Callable[[World], None]:
    def act(world: World) -> None:
        world.ranks[rank].wait(LIMIT_S)
    return act


def stop_and_go_on(rank: int, seconds: float) -> Callable[[World], None]:
    """Longer than the others wait for a sign of it."""
    def act(world: World) -> None:
        world.signal(signal.SIGSTOP, rank)
        time.sleep(seconds)
        world.signal(signal.SIGCONT, rank)
    return act


def kill_as_one_joins(*ranks: int) -> Callable[[World], None]:
    """They die when a new rank is in the view, and has nothing of the state yet."""
    def act(world: World) -> None:
        add(world)
        world.signal(signal.SIGKILL, *ranks)
    return act


SLOWED = (sys.executable, "-m", "tests.rig.slowed")
FLIP = (sys.executable, "-m", "tests.rig.flip")
CUT_OFF = "no two models are trained from one run"

FAULTS = [
    Fault("a rank is killed", kill(1), lost=(1,)),
    Fault("rank 0 is killed", kill(0), lost=(0,)),
    Fault("two of four at once", kill(0, 2), size=4, lost=(0, 2)),
    Fault("all but one at once", kill(0, 1), lost=(0, 1)),
    Fault("a rank is killed during a regroup", kill_one_and_then(2, 1), size=4, lost=(2, 1)),
    Fault("rank 0 is killed during a regroup", kill_one_and_then(2, 0), size=4, lost=(2, 0)),
    Fault("rank 0 is killed in a checkpoint", kill_in_a_checkpoint, lost=(0,), overrides=("checkpoint.every_steps=5",)),
    Fault("a rank is stopped", stop(1), lost=(1,), silent=True),
    Fault("rank 0 is stopped", stop(0), lost=(0,), silent=True),
    Fault("a rank is added", add, program=SLOWED),
    Fault("a bit flips in one of three", flip(2), program=FLIP, overrides=("guard.every_steps=10",),
          most_done_again=10),
    Fault("a bit flips in one of two", flip(0), size=2, program=FLIP, overrides=("guard.every_steps=10",),
          most_done_again=10),
    Fault("a rank is held to half a core", hold_back, overrides=("watch.every_s=1",)),
    Fault("the disk is full for a while", fill_disk, where="disk", overrides=("checkpoint.every_steps=5",),
          says="could not be written"),
    Fault("a rank is killed while the disk is full", fill_disk_and_kill(1), where="disk", lost=(1,),
          overrides=("checkpoint.every_steps=5", "train.ledger=false")),
    Fault("rank 0 is killed while the disk is full", fill_disk_and_kill(0), where="disk", lost=(0,),
          overrides=("checkpoint.every_steps=5", "train.ledger=false")),
    Fault("all ranks get SIGTERM", terminate, again=True, lost=(0, 1, 2)),
    Fault("rank 0 is stopped and goes on later", stop_and_go_on(0, 3 * SILENCE_S), lost=(0,), silent=True,
          says=CUT_OFF),
    Fault("a rank, and then rank 0, die as another joins", kill_as_one_joins(1, 0), lost=(1, 0), program=SLOWED),
    Fault("who joins dies at once", kill_as_one_joins(3), lost=(3,), program=SLOWED),
    *(Fault(f"rank {rank} ends {point}", ends_by_itself(rank), lost=(rank,), program=ends(rank, point))
      for rank, point in ((0, "before it records a step"), (1, "before it writes its ledger"), (0, "in a validation"),
                          (0, "before it writes the result"), (0, "after it wrote the result"))),
    Fault("a rank gets SIGTERM", ask_to_end(1), lost=(1,)),
    Fault("rank 0 gets SIGTERM", ask_to_end(0), lost=(0,)),
    Fault("all die, a byte of the newest checkpoint flips", kill_all_and_damage(flip_byte), again=True, lost=(0, 1, 2),
          overrides=("checkpoint.every_steps=10",), says="is damaged", most_done_again=30),
    Fault("all die, the newest checkpoint is cut short", kill_all_and_damage(cut_short), again=True, lost=(0, 1, 2),
          overrides=("checkpoint.every_steps=10",), says="is damaged", most_done_again=30),
    Fault("rank 0's node dies", kill_node("node1"), where="nodes", lost=(0,)),
    Fault("a node dies that writes its part of a checkpoint", kill_a_writer, where="nodes", lost=(1,),
          overrides=("checkpoint.every_steps=5",)),
    Fault("a cable is out", cut("node2"), where="nodes", lost=(1,), silent=True, says=CUT_OFF),
    Fault("rank 0's cable is out for a while", cut("node1", 5.0), where="nodes", lost=(0,), silent=True, says=CUT_OFF),
    Fault("a cable at 1% of its speed", slow_cable, where="nodes"),
]
LAUNCHED = [
    *(fault for fault in FAULTS if fault.name in ("a rank is killed", "rank 0 is killed", "all ranks get SIGTERM")),
    Fault("a node dies", kill_node("node3"), where="nodes", lost=(2,), overrides=("checkpoint.every_steps=10",),
          most_done_again=20),
]
"""The main ones, for each launcher. Open MPI ends a job whose node dies, and the launcher starts it again."""


def run_fault(fault: Fault, experiment: Path, run: Path, backend: str = "gloo", overrides: Sequence[str] = (),
              within: Callable[..., AbstractContextManager[World]] | None = None) -> Outcome:
    """Train with ``fault`` in the middle. ``within``: (run, size, arguments) -> other ranks than the fault asks for."""
    settings = [f"comm.backend={backend}", f"comm.silence_s={SILENCE_S}", "train.ledger=true", *overrides,
                *fault.overrides]
    arguments: list[str | Path] = [experiment, *(word for setting in settings for word in ("--set", setting))]
    with (within or partial(_world, fault))(run, fault.size, arguments) as world:
        world.until_step(AT_STEP)
        fault.act(world)
        before, at, errors = world.records(), time.time(), ""
        codes = world.wait(without=fault.lost)
        if fault.again:
            errors = world.errors()
            world.restart()
            codes = world.wait()
        records, errors, run = world.records(), errors + world.errors(), world.run
        result = json.loads((run / "result.json").read_text()) if (run / "result.json").exists() else {}
        has_ledger = "train.ledger=false" not in fault.overrides
        repeated, missing = _ledger(run, result.get("step", 0)) if has_ledger else (0, 0)
    steps_s = sorted(record["step_s"] for record in before)
    after = [record for record in records if record["time"] > at]
    done = before[-1]["step"]
    times = [at, *(record["time"] for record in after if record["step"] > done)][:6]
    seconds = max((b - a for a, b in pairwise(times)), default=float("inf"))
    return Outcome(bool(result.get("finished")), result.get("weights_sha256", ""), codes, seconds,
                   max(0, done + 1 - after[0]["step"]) if after else 0, steps_s[len(steps_s) // 2], repeated, missing,
                   errors)


@contextlib.contextmanager
def _world(fault: Fault, run: Path, size: int, arguments: Sequence[str | Path]) -> Iterator[World]:
    if fault.where == "nodes":
        with Nodes(size) as nodes, NodesWorld(nodes, run, arguments) as spread:
            yield spread
    elif fault.where == "disk":
        with small_disk(run.with_name(f"{run.name}-disk"), "8m") as disk, \
                DiskWorld(disk, run, size, arguments) as stored:
            yield stored
    else:
        with World(run, size, arguments, program=fault.program) as world:
            yield world


def run_storm(seed: int, faults: int, experiment: Path, run: Path,
              overrides: Sequence[str] = ()) -> tuple[int, str, str]:
    """A run of up to four ranks that meets ``faults`` random faults, several at once among them, and is then asked to
    end: (its last step, the digest of the weights after it, errors).

    Ranks are killed, or stopped for ever, but one that lives; others join in their place. Never are more silent
    than are left: who hears less than half of those that are not known to be dead can not tell a cut network from the
    others' end, and must end too. The run's length must not matter to its weights.
    """
    random_ = random.Random(seed)
    settings = ["comm.backend=gloo", f"comm.silence_s={SILENCE_S}", "train.ledger=true", "train.steps=1000000",
                *overrides]
    arguments: list[str | Path] = [experiment, *(word for setting in settings for word in ("--set", setting))]
    with World(run, 4, arguments, program=SLOWED) as world:
        world.until_step(5)
        trains, gone = set(range(4)), set[int]()
        silent, seen = 0, 0  # so many were stopped, when that was the last step: nobody may miss them yet
        while faults > 0:
            time.sleep(random_.uniform(0.0, 1.0))
            assert all(world.ranks[rank].poll() is None for rank in trains), world.errors()
            if len(trains) > 1 and random_.random() < 0.6:
                victims = random_.sample(sorted(trains), random_.randint(1, len(trains) - 1))
                if (step := world.records()[-1]["step"]) > seen + 2:  # one was on its way, and one not recorded yet
                    silent, seen = 0, step
                left, stops = len(trains) - len(victims), random_.random() < 0.2
                if silent + (len(victims) if stops else 0) > left:
                    continue
                if stops:
                    world.signal(signal.SIGSTOP, *victims)
                    silent, seen = silent + len(victims), world.records()[-1]["step"]
                else:
                    world.signal(signal.SIGKILL, *victims)
                trains -= set(victims)
                gone |= set(victims)
                faults -= len(victims)
            elif len(trains) < 4:
                before, missing = max(_members(run)), 4 - len(trains)
                for _ in range(missing):
                    world.join()
                world.until(partial(_are_in, world, before, missing))
                trains |= set(range(len(world.ranks) - missing, len(world.ranks)))
                world.until_step(world.records()[-1]["step"] + 2)  # only then have they what the others have
        for rank in gone:
            world.ranks[rank].kill()
        world.signal(signal.SIGTERM, *trains)
        codes = world.wait(without=sorted(gone))
        errors = world.errors()
    assert set(codes) == {128 + signal.SIGTERM}, errors
    last = newest_checkpoint(RunDir(run), lambda text: None)
    assert last is not None
    assert _ledger(run, last.step) == (0, 0)
    return last.step, weights_sha256(last.model), errors


def _are_in(world: World, before: int, count: int) -> bool:
    """Whether the last ``count`` ranks to be started are members; their numbers are higher than ``before``."""
    assert all(process.poll() is None for process in world.ranks[-count:]), world.errors()[-3000:]
    return sum(member > before for member in _members(world.run)) >= count


def _members(run: Path) -> list[int]:
    """Numbers of the members of the present view."""
    return [int(member) for member in json.loads((run / "members.json").read_text())["members"]]


def _ledger(run: Path, steps: int) -> tuple[int, int]:
    """(lanes of steps that are there more than once, that are missing)."""
    seen: Counter[tuple[int, int]] = Counter()
    for path in (run / "ledger").glob("rank-*.jsonl"):
        for line in path.read_text().splitlines():
            with contextlib.suppress(ValueError):
                record = json.loads(line)
                seen[record["step"], record["lane"]] += 1
    lanes = 1 + max((lane for _, lane in seen), default=0)
    return (sum(count - 1 for count in seen.values()),
            sum((step, lane) not in seen for step in range(1, steps + 1) for lane in range(lanes)))
