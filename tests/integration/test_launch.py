"""The local launcher with real processes: what ranks get, how failures are told, and that nothing is left behind."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

Start = Callable[..., "subprocess.Popen[str]"]
LIMIT_S = 60
TOKEN = "LAUNCH_TEST_TOKEN"

WAIT = """\
import os, signal, sys, time
from pathlib import Path
place, rank = Path(sys.argv[1]), os.environ["RANK"]
"""


@pytest.fixture
def token() -> Iterator[str]:
    """Marks the environment of a test's processes, so that those left behind are found (and ended)."""
    mark = f"{os.getpid()}-{time.monotonic_ns()}"
    yield mark
    for pid in marked(mark):
        os.kill(pid, signal.SIGKILL)


def marked(token: str) -> list[int]:
    """Living processes whose environment carries the token."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if f"{TOKEN}={token}".encode() in (entry / "environ").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


def until(condition: Callable[[], object], what: str) -> None:
    """Wait for a condition, up to the limit of this file."""
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.02)


class Launch:
    """One `launch run` of a small Python program over two ranks."""

    def __init__(self, start: Start, folder: Path, token: str) -> None:
        self._start, self.folder, self._token = start, folder, token
        self.temporary = folder / "tmp"
        self.temporary.mkdir()
        self.place = folder / "place"
        self.place.mkdir()

    def begin(self, program: str, *options: str, keys: str = "", words: tuple[str, ...] = ()) -> subprocess.Popen[str]:
        """Start the program, which finds `place` (a folder) and `rank`; more words follow as its arguments."""
        cluster = self.folder / "cluster.yaml"
        cluster.write_text(f"ranks_per_node: 2\nallocator: system\n{keys}\n")
        script = self.folder / "program.py"
        script.write_text(WAIT + program)
        return self._start(sys.executable, "-m", "launch", "run", cluster, *options, "--", sys.executable, script,
                           self.place, *words, **{TOKEN: self._token, "TMPDIR": str(self.temporary)})

    def __call__(self, program: str, *options: str, code: int = 0, keys: str = "",
                 words: tuple[str, ...] = ()) -> tuple[str, str]:
        """Run it to its end; (stdout, stderr). No process may be left."""
        process = self.begin(program, *options, keys=keys, words=words)
        out, err = process.communicate(timeout=LIMIT_S)
        assert process.returncode == code, err
        assert not marked(self._token)
        return out, err

    def until_ready(self, count: int = 2) -> None:
        """Wait until so many processes wrote a file named ready-*."""
        until(lambda: len(list(self.place.glob("ready-*"))) >= count, "ranks are ready")


@pytest.fixture
def launch(start: Start, tmp_path: Path, token: str) -> Launch:
    return Launch(start, tmp_path, token)


DUMP = """\
import json
(place / f"{rank}.json").write_text(json.dumps(
    [dict(os.environ), sorted(os.sched_getaffinity(0)), sys.argv[2:], os.getpid() == os.getsid(0)]))
print("out", rank, flush=True)
print("err", rank, file=sys.stderr)
"""


def test_what_ranks_get(launch: Launch) -> None:
    words = ("a b", "$(touch x)", "'\"\\", "--", "--ranks", "\n", "")
    out, err = launch(DUMP, words=words, keys="env: {MINE: 5}")
    assert out == "out 0\n"
    assert "err 0\n" in err
    assert "err 1" not in err
    ranks = [json.loads((launch.place / f"{rank}.json").read_text()) for rank in range(2)]
    for rank, (environment, cpus, arguments, leads) in enumerate(ranks):
        expected = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
                    "GROUP_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MINE": "5"}
        assert expected.items() <= environment.items()
        assert int(environment["OMP_NUM_THREADS"]) >= 1
        assert 0 < int(environment["MASTER_PORT"]) < 65536
        assert arguments == list(words)
        assert cpus
        assert leads
    assert ranks[0][0]["MASTER_PORT"] == ranks[1][0]["MASTER_PORT"]
    if len(os.sched_getaffinity(0)) >= 2:
        assert not set(ranks[0][1]) & set(ranks[1][1])
    assert not list(launch.temporary.iterdir())  # nothing failed, so no logs stay


def test_ranks_meet_over_gloo(launch: Launch) -> None:
    out, _ = launch("""\
import torch, torch.distributed as dist
torch.set_num_threads(1)
os.environ["GLOO_SOCKET_IFNAME"] = "lo"
dist.init_process_group("gloo")
total = torch.tensor([1 + dist.get_rank()])
dist.all_reduce(total)
if dist.get_rank() == 0:
    print(total.item())
dist.destroy_process_group()
""", "--ranks", "3")
    assert out == "6\n"


def test_more_ranks_than_cores(launch: Launch) -> None:
    size = len(os.sched_getaffinity(0)) + 3
    out, err = launch(DUMP, "--ranks", str(size))
    assert out == "out 0\n"
    assert len(list(launch.place.glob("*.json"))) == size
    assert err.count("ranks share") == 1


def test_stdin_is_rank_0s(launch: Launch) -> None:
    script = launch.folder / "cat.py"
    script.write_text("import sys; print(repr(sys.stdin.read()))")
    (launch.folder / "c.yaml").write_text("ranks_per_node: 2\n")
    done = subprocess.run([sys.executable, "-m", "launch", "run", launch.folder / "c.yaml", "--all-output", "--",
                           sys.executable, script], input="hello", capture_output=True, text=True, timeout=LIMIT_S)
    assert done.stdout == "'hello'\n"
    assert "[rank 1] ''\n" in done.stderr


def test_output_of_all_ranks(launch: Launch) -> None:
    logs = launch.folder / "logs"
    out, err = launch("print('x' * 70000, end='')\n" + DUMP, "--all-output", "--logs", str(logs))
    assert out.endswith("out 0\n")
    assert "[rank 1] err 1\n" in err
    assert "out 1\n" in err
    assert sorted(path.name for path in logs.iterdir()) == ["rank-1.err", "rank-1.out"]
    assert (logs / "rank-1.out").read_text() == "x" * 70000 + "out 1\n"
    launch(DUMP, "--logs", str(logs))
    assert (logs / "rank-1.err").read_text() == "err 1\nerr 1\n"  # an earlier run's output is not lost


def test_a_rank_that_fails_ends_the_others(launch: Launch) -> None:
    _, err = launch("""\
if rank == "1":
    print("first line\\nlast line", file=sys.stderr)
    sys.exit(7)
time.sleep(600)
""", code=7)
    assert "rank 1 failed first: it ended with exit code 7" in err
    assert "  last line\n" in err
    kept = list(launch.temporary.iterdir())
    assert len(kept) == 1
    assert str(kept[0]) in err
    assert (kept[0] / "rank-1.err").read_text() == "first line\nlast line\n"


def test_a_rank_that_ignores_sigterm_is_killed(launch: Launch) -> None:
    launch("""\
signal.signal(signal.SIGTERM, signal.SIG_IGN)
(place / f"ready-{rank}").touch()
while rank == "1" and not (place / "ready-0").exists():
    time.sleep(0.01)
if rank == "1":
    os.kill(os.getpid(), signal.SIGSEGV)
time.sleep(600)
""", code=128 + signal.SIGSEGV, keys="grace_s: 0.1")


def test_others_may_save_when_one_rank_is_killed(launch: Launch) -> None:
    _, err = launch("""\
def save(*_):
    (place / "saved").touch()
    sys.exit(1)
if rank == "0":
    signal.signal(signal.SIGTERM, save)
    (place / "ready-0").touch()
    time.sleep(600)
while not (place / "ready-0").exists():
    time.sleep(0.01)
os.kill(os.getpid(), signal.SIGKILL)
""", code=137)
    assert (launch.place / "saved").exists()
    assert err.count("launch: rank") == 1
    assert "rank 1 failed first: it was killed by SIGKILL" in err


def test_bad_input_that_every_rank_finds_is_one_line(launch: Launch) -> None:
    _, err = launch("""\
import json
print("error: no such file.", file=sys.stderr)
Path(os.environ["TORCHELASTIC_ERROR_FILE"]).write_text(json.dumps({"message": "no such file."}))
sys.exit(2)
""", "--ranks", "3", code=2)
    assert [line for line in err.splitlines() if "ranks" not in line] == ["error: no such file."]
    assert not list(launch.temporary.iterdir())


def test_bad_input_that_one_rank_finds_is_one_line(launch: Launch) -> None:
    _, err = launch("""\
if rank == "1":
    sys.exit(print("error: shard 7 is damaged.", file=sys.stderr) or 2)
time.sleep(600)
""", code=2)
    lines = [line for line in err.splitlines() if "error" in line]
    assert len(lines) == 1
    assert lines[0].startswith("error: rank 1: shard 7 is damaged.")


SAVE = """\
def save(number, _):
    with (place / f"saved-{rank}").open("a") as file:
        file.write(f"{number}\\n")
    time.sleep(0.3)
    sys.exit(128 + number)
signal.signal(signal.SIGINT, save)
signal.signal(signal.SIGTERM, save)
(place / f"ready-{rank}").touch()
while True:
    time.sleep(1)
"""


@pytest.mark.parametrize(("sent", "passed_on"), [
    (signal.SIGINT, signal.SIGINT), (signal.SIGTERM, signal.SIGTERM), (signal.SIGHUP, signal.SIGTERM)])
def test_a_stop_is_passed_on_once(launch: Launch, token: str, sent: signal.Signals, passed_on: signal.Signals) -> None:
    process = launch.begin(SAVE)
    launch.until_ready()
    process.send_signal(sent)
    _, err = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 128 + sent, err
    assert not marked(token)
    for rank in range(2):
        assert (launch.place / f"saved-{rank}").read_text() == f"{passed_on:d}\n"
    assert "failed" not in err
    assert not list(launch.temporary.iterdir())


STUBBORN = """\
import subprocess
signal.signal(signal.SIGINT, signal.SIG_IGN)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if len(sys.argv) == 2:
    subprocess.Popen([sys.executable, __file__, str(place), "child"])
    subprocess.Popen([sys.executable, __file__, str(place), "escaped"], start_new_session=True)
(place / f"ready-{rank}-{sys.argv[2:]}").touch()
time.sleep(600)
"""


def test_a_second_interrupt_kills(launch: Launch, token: str) -> None:
    process = launch.begin(STUBBORN)
    launch.until_ready(6)
    process.send_signal(signal.SIGINT)
    assert process.stderr is not None
    while "passed on" not in process.stderr.readline():
        pass
    time.sleep(0.2)  # longer than what counts as the same Ctrl-C
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=LIMIT_S)
    assert process.returncode == 130
    assert not marked(token)


def test_ranks_that_do_not_stop_in_time_are_killed(launch: Launch, token: str) -> None:
    process = launch.begin(STUBBORN, keys="stop_grace_s: 0.2")
    launch.until_ready(6)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 143
    assert "2 of 2 ranks did not end within 0.2 s" in err
    assert not marked(token)


def test_a_shell_that_dies_at_once_does_not_cost_its_child_the_time_to_save(launch: Launch, token: str) -> None:
    wrapper = launch.folder / "wrapper.sh"
    wrapper.write_text('#!/bin/bash\n"$@"\necho unreached\n')
    wrapper.chmod(0o755)
    (launch.folder / "program.py").write_text(WAIT + SAVE)
    process = launch.begin(  # the shell gets SIGTERM too and ends before its child has saved
        f"os.execv({str(wrapper)!r}, [{str(wrapper)!r}, sys.executable, sys.argv[2], sys.argv[1]])\n",
        words=(str(launch.folder / "saver.py"),))
    (launch.folder / "saver.py").write_text(WAIT + SAVE.replace("    time.sleep(0.3)\n", "    time.sleep(0.3)\n"
                                                                "    (place / f'whole-{rank}').touch()\n"))
    launch.until_ready()
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=LIMIT_S)
    assert process.returncode == 143
    assert len(list(launch.place.glob("whole-*"))) == 2
    assert not marked(token)


def test_what_finished_ranks_leave_behind_is_ended(launch: Launch) -> None:
    launch("""\
import subprocess
if len(sys.argv) == 2:
    subprocess.Popen([sys.executable, __file__, str(place), "child"])
    subprocess.Popen([sys.executable, __file__, str(place), "escaped"], start_new_session=True)
    while len(list(place.glob("ready-*"))) < 2 * int(os.environ["WORLD_SIZE"]):
        time.sleep(0.01)
else:
    (place / f"ready-{rank}-{sys.argv[2]}").touch()
    time.sleep(600)
""")


def test_ranks_die_with_a_launcher_that_is_killed(launch: Launch, token: str) -> None:
    process = launch.begin(STUBBORN.replace(", start_new_session=True", ""))
    launch.until_ready(6)
    process.kill()
    process.communicate(timeout=LIMIT_S)
    until(lambda: not marked(token), "ranks and their children die with the launcher")


def test_ranks_die_with_a_killed_launcher_that_has_no_guard(launch: Launch, token: str) -> None:
    process = launch.begin(STUBBORN.replace("len(sys.argv) == 2", "False"))
    launch.until_ready()
    guards = [pid for pid in marked(token) if b"guard.py" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    assert len(guards) == 1
    os.kill(guards[0], signal.SIGKILL)
    process.kill()
    process.communicate(timeout=LIMIT_S)
    until(lambda: not marked(token), "the kernel kills ranks whose launcher is gone")


ELASTIC = """\
(place / f"ready-{rank}-{os.environ.get('LAUNCH_JOIN')}-{os.environ['LAUNCH_ELASTIC']}").touch()
if rank == sys.argv[2] and "LAUNCH_JOIN" not in os.environ:
    os.kill(os.getpid(), signal.SIGKILL)
while not (place / "go").exists():
    time.sleep(0.01)
print("end of", rank)
"""


def read_until(process: subprocess.Popen[str], words: str) -> str:
    """The line of a launch's stderr that holds these words."""
    assert process.stderr is not None
    for line in process.stderr:
        if words in line:
            return line
    raise AssertionError(f"never: {words}")


@pytest.mark.parametrize("lost", ["0", "1"])
def test_in_an_elastic_job_the_others_go_on(launch: Launch, token: str, lost: str) -> None:
    process = launch.begin(ELASTIC, "--elastic", words=(lost,))
    assert "was killed by SIGKILL" in read_until(process, f"rank {lost} on {socket.gethostname()} is lost")
    (launch.place / "go").touch()
    out, err = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0, err
    assert f"the job ended well, though it lost rank {lost} (was killed by SIGKILL)" in err
    assert out == ("end of 1\n" if lost == "0" else "end of 0\n")  # rank 0's, or who stands in for it
    assert not marked(token)


def test_a_lost_rank_is_started_again_to_join(launch: Launch) -> None:
    process = launch.begin(ELASTIC, "--elastic", words=("1",), keys="restarts: 1\nrestart_wait_s: 0")
    until((launch.place / "ready-1-1-1").exists, "the rank comes back")
    (launch.place / "go").touch()
    _, err = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0
    assert "rank 1 (was killed by SIGKILL, and came back)" in err


def test_bad_input_of_an_elastic_job_is_one_line(launch: Launch) -> None:
    _, err = launch("""\
(place / f"start-{time.monotonic_ns()}").touch()
print("error: no such file.", file=sys.stderr)
sys.exit(2)
""", "--elastic", code=2, keys="restarts: 3")
    assert [line for line in err.splitlines() if "ranks" not in line] == ["error: no such file."]
    assert len(list(launch.place.glob("start-*"))) == 2


def test_bad_input_that_one_rank_of_an_elastic_job_finds_ends_it(launch: Launch) -> None:
    _, err = launch("""\
import json
if rank == "1":
    Path(os.environ["TORCHELASTIC_ERROR_FILE"]).write_text(json.dumps(
        {"message": "no such dataset.", "timestamp": "0", "kind": "ManifestError"}))
    sys.exit(2)
time.sleep(600)
""", "--elastic", code=2, keys="restarts: 3")
    lines = [line for line in err.splitlines() if "threads of each" not in line]
    assert len(lines) == 1
    assert lines[0].startswith("error: rank 1: no such dataset.")


ATTEMPTS = """\
attempt = os.environ["TORCHELASTIC_RESTART_COUNT"]
(place / f"start-{rank}-{attempt}-{os.environ['MASTER_PORT']}").touch()
if rank == "1" and int(attempt) < int(sys.argv[2]):
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_job_that_was_killed_starts_again(launch: Launch) -> None:
    _, err = launch(ATTEMPTS, keys="restarts: 2\nrestart_wait_s: 0", words=("2",))
    assert "restart 2 of 2" in err
    starts = [path.name.split("-")[1:] for path in launch.place.glob("start-*")]
    assert sorted(start[:2] for start in starts) == [[rank, attempt] for rank in "01" for attempt in "012"]
    assert len({port for _, attempt, port in starts if attempt == "2"}) == 1


def test_restarts_are_bounded(launch: Launch) -> None:
    _, err = launch(ATTEMPTS, keys="restarts: 1\nrestart_wait_s: 0", words=("9",), code=137)
    assert "given up after 1 restart" in err
    assert len(list(launch.place.glob("start-1-*"))) == 2


def test_a_stop_is_not_followed_by_a_restart(launch: Launch, token: str) -> None:
    process = launch.begin(ATTEMPTS, keys="restarts: 5\nrestart_wait_s: 600", words=("9",))
    read_until(process, "starts again in 300 s")
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=LIMIT_S)
    assert process.returncode == 143
    assert len(list(launch.place.glob("start-1-*"))) == 1
    assert not marked(token)


def test_an_elastic_training_loses_a_rank_and_nothing_else(start: Start, experiment: Path, tmp_path: Path) -> None:
    train = (sys.executable, "-m", "distrib", "train", experiment, "--json", "--set", "train.steps=20", "--run")
    alone, err = start(*train, tmp_path / "alone").communicate(timeout=LIMIT_S)
    cluster = tmp_path / "cluster.yaml"
    cluster.write_text("ranks_per_node: 2\nallocator: system\nelastic: true\n")
    run = tmp_path / "run"
    process = start(sys.executable, "-m", "launch", "run", cluster, "--", *train, run)
    until(lambda: (run / "metrics.jsonl").exists() and (run / "metrics.jsonl").stat().st_size, "it trains")
    first = next(pid for pid in children_of(process.pid) if b"RANK=0\0" in Path(f"/proc/{pid}/environ").read_bytes())
    os.kill(first, signal.SIGKILL)
    out, told = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0, told
    assert "rank 0 (was killed by SIGKILL)" in told
    assert "[rank 1] lost: 1 rank (number 0" in told  # who speaks for all after rank 0 is heard too
    assert "[rank 1] step 20/20" in told
    digest = json.loads(alone)["weights_sha256"]
    assert json.loads((run / "result.json").read_text())["weights_sha256"] == digest, err
    assert json.loads(out)["weights_sha256"] == digest
    assert json.loads(out)["world_size"] == 1


def children_of(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_the_wrapper_pins_and_prefers_memory() -> None:
    from launch import rank

    cpu = max(os.sched_getaffinity(0))
    done = subprocess.run([sys.executable, "-I", "-S", rank.__file__, f"--cpus={cpu}", "--memory-node=0", "--",
                           "/bin/cat", "/proc/self/status", "/proc/self/numa_maps"], capture_output=True, text=True,
                          timeout=LIMIT_S)
    assert f"Cpus_allowed_list:\t{cpu}\n" in done.stdout
    # A container may forbid the call, or the kernel know no nodes; then that is told.
    assert ("prefer:0" in done.stdout) != ("memory node 0 could not be preferred" in done.stderr)


def test_commands_that_can_not_run(launch: Launch) -> None:
    script = launch.folder / "no-interpreter"
    script.write_text("echo hello\n")
    script.chmod(0o755)
    cluster = launch.folder / "c.yaml"
    cluster.write_text("ranks_per_node: 3\n")
    for word, told in ((str(script), "can not be executed"), ("no-such-command", "neither on PATH"),
                       (str(launch.folder), "is a folder")):
        done = subprocess.run([sys.executable, "-m", "launch", "run", cluster, "--", word], capture_output=True,
                              text=True, timeout=LIMIT_S)
        assert done.returncode == 2
        assert done.stdout == ""
        errors = [line for line in done.stderr.splitlines() if not line.startswith("launch: ")]
        assert len(errors) == 1, done.stderr
        assert errors[0].startswith("error: ")
        assert told in errors[0]


@pytest.mark.parametrize(("words", "told"), [
    ([], "missing command"),
    (["rnu"], "no such command 'rnu'"),
    (["run"], "no `--`"),
    (["run", "{c}", "true"], "no `--`"),
    (["run", "--", "true"], "missing argument"),
    (["run", "{c}", "--"], "missing argument"),
    (["run", "{c}", "--nodez", "2", "--", "true"], "no such option: --nodez"),
    (["run", "{c}", "--nodes", "2", "--", "true"], "--nodes 2"),
    (["run", "{c}", "--nodes", "two", "--", "true"], "--nodes"),
    (["run", "{c}", "--ranks", "0", "--", "true"], "--ranks"),
    (["run", "{c}", "--set", "ranks_per_nod=2", "--", "true"], "did you mean 'ranks_per_node'"),
    (["run", "{c}", "--set", "ranks_per_node", "--", "true"], "--set"),
    (["plan", "nowhere.yaml", "--", "true"], "nowhere.yaml"),
    (["plan", "/", "--", "true"], "can not be read"),
])
def test_mistakes_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str],
                                      told: str) -> None:
    from launch.cli import main

    (tmp_path / "c.yaml").write_text("")
    assert main([word.format(c=tmp_path / "c.yaml") for word in words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert told in err


def test_plan_shows_and_starts_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from launch.cli import main

    cluster = tmp_path / "c.yaml"
    cluster.write_text("name: mine\nranks_per_node: 2\nallocator: system\n")
    touch = ["touch", str(tmp_path / "made")]
    assert main(["plan", str(cluster), "--json", "--", *touch]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [rank["rank"] for rank in document["ranks"]] == [0, 1]
    assert document["command"][1:] == touch[1:]
    assert main(["plan", str(cluster), "--", *touch]) == 0
    shown = capsys.readouterr().out
    assert all(part in shown for part in ("mine", "OMP_NUM_THREADS", "touch", "CPUs", "allocator"))
    assert not (tmp_path / "made").exists()


def test_the_command_line_loads_nothing_heavy() -> None:
    code = ("import sys, launch.cli; import launch.plan, launch.local\n"
            "print([m for m in ('torch', 'numpy', 'distrib.config', 'sklearn', 'cv2', 'rich') if m in sys.modules])")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=LIMIT_S)
    assert done.stdout == "[]\n"
    code = "import sys, launch.cli; print([m for m in ('pydantic', 'yaml') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=LIMIT_S)
    assert done.stdout == "[]\n"  # --help needs neither
