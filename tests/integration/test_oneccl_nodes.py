"""oneCCL between several nodes: shared memory within each, TCP between them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from distrib.comm import oneccl
from tests.rig.nodes import Nodes, why_not
from tests.rig.summing import SIZES

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 60
OWN_CPU = max(os.sched_getaffinity(0))
"""Set aside for communication."""


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    lack = why_not() or oneccl.missing()
    if lack is not None:
        assert os.environ.get("CI") != "true", lack
        pytest.skip(lack)
    with Nodes(2) as made:
        yield made


def start(nodes: Nodes, ranks_a_node: int, *words: str, host: str | None = None) -> list[subprocess.Popen[str]]:
    """A world over both nodes, its ranks in order; ``host``: the name that all nodes go by."""
    size, processes = 2 * ranks_a_node, []
    for rank in range(size):
        node, local = divmod(rank, ranks_a_node)
        environment = {
            "RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(local),
            "LOCAL_WORLD_SIZE": str(ranks_a_node), "MASTER_ADDR": nodes.address("node1"), "MASTER_PORT": "29411",
            "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "LAUNCH_COMM_CPUS": str(OWN_CPU),
        }
        program = [sys.executable, "-m", "tests.rig.summing", "oneccl", *words]
        if host is not None:
            program = ["sh", "-c", 'hostname "$0" && exec "$@"', host, *program]
        processes.append(nodes.start(nodes.names[node], program, environment, cwd=ROOT, stdout=subprocess.PIPE,
                                     stderr=subprocess.PIPE))
    return processes


def answer(process: subprocess.Popen[str]) -> dict[str, Any]:
    out, err = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0, err[-2000:]
    said: dict[str, Any] = json.loads(out.splitlines()[-1])
    return said


@pytest.mark.timeout(120)
def test_two_ranks_on_each_of_two_nodes(nodes: Nodes) -> None:
    for process in start(nodes, 2):
        said = answer(process)
        assert said["right"] == list(SIZES), said
        assert said["error"] is None
        assert said["engine"] == [OWN_CPU]


@pytest.mark.timeout(120)
def test_nodes_of_one_name(nodes: Nodes) -> None:
    # oneCCL takes ranks on hosts of one name for neighbours in shared memory.
    for process in start(nodes, 1, host="twin"):
        assert answer(process)["right"] == list(SIZES)


@pytest.mark.timeout(120)
def test_a_node_that_is_cut_off_is_named_within_seconds(nodes: Nodes) -> None:
    first, second = start(nodes, 1, "forever")
    assert first.stderr is not None
    for line in first.stderr:
        if "summed" in line:
            break
    nodes.cut("node2")
    said = answer(first)
    assert "rank 1 on node2 is lost: it gave no sign of life" in said["error"]
    assert said["after_s"] < 6
    assert "rank 0 on node1 is lost: it gave no sign of life" in answer(second)["error"]
