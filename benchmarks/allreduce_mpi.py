"""Open MPI's all-reduce for benchmarks/allreduce.py: allreduce_mpi.c, compiled at run time and run by mpirun."""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

from allreduce_rank import BLOCK_S, CELL_S, LEAST_ROUNDS
from timing import note

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.rig.nodes import Nodes  # noqa: E402

LONGEST_S = 900.0
COMMON = ("--allow-run-as-root", "--bind-to", "none", "--mca", "pml", "ob1")  # the program keeps to its core itself

# What mpirun takes for ssh: a shell on another node.
REMOTE_SHELL = """#!/bin/sh
while [ "${1#-}" != "$1" ]; do shift; done
node=$1; shift
exec ip netns exec PREFIX-"$node" unshare --uts sh -c 'hostname "$0" && exec sh -c "$1"' "$node" "$*"
"""


def compile_program(folder: Path) -> Path | None:
    """The program, or None if a tool is missing, which is noted."""
    if shutil.which("mpicc") is None or shutil.which("mpirun") is None:
        note("MPI: mpicc or mpirun is missing (apt-get install libopenmpi-dev openmpi-bin)")
        return None
    version = subprocess.run(["mpirun", "--version"], capture_output=True, text=True, check=False).stdout
    if "Open MPI" not in version:
        note(f"MPI: mpirun is not Open MPI's but {version.splitlines()[:1]}")
        return None
    program = folder / "allreduce_mpi"
    done = subprocess.run(["mpicc", "-O3", "-march=native", "-o", program, Path(__file__).with_suffix(".c")],
                          capture_output=True, text=True, check=False)
    if done.returncode:
        note(f"MPI: the program does not compile: {done.stderr}")
        return None
    return program


def run_program(program: Path, settings: tuple[str, ...], nodes: Nodes | None, cores: list[int],
                options: argparse.Namespace) -> dict[tuple[str, int], float]:
    """Median seconds of every (dtype, size). Nothing if it failed, which is noted."""
    cells = [f"{dtype}:{size}" for dtype in options.dtypes for size in options.sizes]
    place = ["--host", "localhost:2"]
    if nodes is not None:
        shell = program.with_name("remote_shell")
        shell.write_text(REMOTE_SHELL.replace("PREFIX", nodes.prefix))
        shell.chmod(0o755)
        place = ["--host", ",".join(nodes.names), "--mca", "plm_rsh_agent", str(shell)]
    argv = ["mpirun", *COMMON, *place, *settings, "-np", "2", str(program), str(options.rounds), str(LEAST_ROUNDS),
            str(CELL_S), str(BLOCK_S), ",".join(map(str, cores)), *cells]
    process = (subprocess.Popen(argv, env=os.environ, text=True, stdout=subprocess.PIPE) if nodes is None
               else nodes.start(nodes.names[0], argv, stdout=subprocess.PIPE))
    try:
        output, _ = process.communicate(timeout=LONGEST_S)
    except subprocess.TimeoutExpired:
        note(f"MPI: not done after {LONGEST_S:.0f} s")
        return {}
    finally:
        process.terminate()  # mpirun then ends its ranks
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10.0)
        process.kill()
        process.wait()
    if process.returncode:
        note(f"MPI: mpirun ended with {process.returncode}")
        return {}
    taken = {}
    for line in output.splitlines():
        cell, seconds = line.split()
        dtype, size = cell.split(":")
        taken[dtype, int(size)] = float(seconds)
    return taken
