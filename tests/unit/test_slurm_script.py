"""The sbatch text: golden, and safe whatever names and paths it is given."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from distrib.errors import ConfigError
from launch.cluster import Cluster
from launch.sbatch import array_tasks, earlier_jobs, script
from launch.slurm import srun_argv

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
NODE = {"sockets": 2, "numa_per_socket": 2, "cores_per_socket": 28, "threads_per_core": 2}
HOSTILE = "it's \"a\" $(touch hacked) `touch hacked` #1; hetjob 50%j \\ é"
FULL = {"partition": "cpu", "account": "skin", "qos": "normal", "constraint": "icelake&ib", "time": "1-12:00:00",
        "spares": 2, "stop_signal_s": 300, "options": ["--reservation=my week", "--mail-type=END"]}


def text(folder: str = "/scratch/jobs/one", name: str = "skin", nodes: int = 4, **keys: object) -> str:
    array, after = keys.pop("array", None), keys.pop("after", ())
    cluster = Cluster.model_validate({"launcher": "slurm", "node": NODE, **keys})
    return script(cluster, Path(folder), name, nodes, 2, array=array, after=after,  # type: ignore[arg-type]
                  python="/opt/python")


@pytest.mark.parametrize(("golden", "written"), [
    ("plain", text()),
    ("full", text(slurm=FULL, after=["12", "13_1"])),
    ("array", text("/scratch/50% of/jobs", array="0-3%2", slurm={"requeue": False})),
    ("shared", text(threads_per_rank=4, comm_cores=1, slurm={"exclusive": False})),
    ("hostile", text(f"/scratch/{HOSTILE}".replace("\\", "/"), HOSTILE, slurm={"options": [f"--comment={HOSTILE}"]})),
])
def test_golden(golden: str, written: str) -> None:
    assert written == (GOLDEN / f"{golden}.sbatch").read_text()


def test_a_shell_passes_hostile_paths_intact(tmp_path: Path) -> None:
    python = tmp_path / "the python $(touch hacked)"
    python.write_text(f"#!{sys.executable}\nimport json, sys\nprint(json.dumps(sys.argv[1:]))\n")
    python.chmod(0o755)
    folder = tmp_path / HOSTILE.replace("\\", "")
    batch = tmp_path / "job.sbatch"
    batch.write_text(script(Cluster(launcher="slurm"), folder, HOSTILE, 1, 1, python=str(python)))
    assert subprocess.run(["bash", "-n", batch], capture_output=True, text=True, check=True).stderr == ""
    done = subprocess.run(["bash", batch], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert json.loads(done.stdout) == ["-m", "launch", "batch", str(folder)]
    assert not list(tmp_path.glob("hacked"))


@pytest.mark.parametrize(("folder", "name"), [
    ("/a\nb", "x"), ("/a\x1b[2J", "x"), ("/a\\b", "x"), ("/a", "x\ny"), ("/a", "x\r#SBATCH --uid=root"), ("/a", " "),
])
def test_what_lines_can_not_hold_is_refused(folder: str, name: str) -> None:
    with pytest.raises(ConfigError):
        text(folder, name)


def test_a_share_of_a_node_needs_a_size() -> None:
    with pytest.raises(ConfigError, match="threads_per_rank"):
        text(slurm={"exclusive": False})


def test_arrays() -> None:
    assert array_tasks("0-6:3,9%2") == [0, 3, 6, 9]
    for wrong in ("", "a", "3-1", "1;2", "0-99999", "0-3 --uid=0", "0\n"):
        with pytest.raises(ConfigError):
            array_tasks(wrong)


def test_earlier_jobs(tmp_path: Path) -> None:
    (tmp_path / "submitted.json").write_text('{"launcher": "slurm", "slurm_job": "7_2"}')
    assert earlier_jobs(["12", str(tmp_path)]) == ["12", "7_2"]
    (tmp_path / "submitted.json").write_text('{"launcher": "slurm", "slurm_job": "7 --uid=0"}')
    for wrong in (str(tmp_path), str(tmp_path / "none"), "12,13", "-1"):
        with pytest.raises(Exception, match=r"[Nn]othing was"):
            earlier_jobs([wrong])


def test_srun() -> None:
    assert " ".join(srun_argv(2, 8, ["PYTHON", "JOB"], False)) == (
        "srun --overlap --overcommit --nodes=2 --ntasks=8 --distribution=arbitrary --cpu-bind=none "
        "--kill-on-bad-exit=0 --no-kill --export=ALL --input=none PYTHON JOB")
