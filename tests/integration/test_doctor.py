"""The doctor on four nodes by real mpirun: healthy ones, then ones with a defect each."""

from __future__ import annotations

import ctypes.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import REPOSITORY
from tests.rig.nodes import Nodes, why_not

LIMIT_S = 150
LOGIN = "node5"
AHEAD_S = 30


def faketime() -> str | None:
    """libfaketime, which Debian keeps where no loader looks."""
    found = next(iter(sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))), None)
    return str(found) if found else ctypes.util.find_library("faketime")


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    lack = why_not() or (None if shutil.which("mpirun.openmpi") else "openmpi-bin is not installed") or (
        None if faketime() else "libfaketime is not installed (apt-get install faketime)")
    if lack:
        assert os.environ.get("CI") != "true", lack
        pytest.skip(lack)
    with Nodes(5, "10.79.0") as made:
        yield made


def examine(nodes: Nodes, folder: Path, hosts: str = "node[1-4]") -> tuple[int, dict[str, Any]]:
    """Exit code and answer of the doctor, called on the login node."""
    cluster, shims = folder / "cluster.yaml", folder / "bin"
    shims.mkdir()
    cluster.write_text(f"launcher: mpirun\nhosts: ['{hosts}']\nallocator: system\n"
                       "mpirun: {program: mpirun.openmpi}\n")
    process = nodes.start(LOGIN, [sys.executable, "-m", "launch", "doctor", cluster, "--json", "--backend", "gloo"],
                          {**nodes.ssh(shims), "PYTHONPATH": str(REPOSITORY), "TMPDIR": str(folder)}, cwd=folder,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        out, err = process.communicate(timeout=LIMIT_S)
    finally:
        process.kill()
    logs = "".join(path.read_text() for path in folder.glob("launch-jobs/*/*.log"))
    assert process.returncode in (0, 1), err + logs
    return process.returncode, json.loads(out)


def complaints(answer: dict[str, Any]) -> dict[str, str]:
    """Check and hosts of every finding: what it says."""
    return {f"{finding['check']} {' '.join(finding['hosts'])}": f"{finding['fact']}. {finding['cause']}"
            for finding in answer["findings"]}


@pytest.mark.timeout(200)
@pytest.mark.soak
def test_healthy_nodes_are_found_healthy(nodes: Nodes, tmp_path: Path) -> None:
    code, answer = examine(nodes, tmp_path)
    assert complaints(answer) == {}
    assert code == 0
    assert answer["ok"]
    assert [node["name"] for node in answer["nodes"]] == ["node1", "node2", "node3", "node4"]
    assert all(len(node["probe"]["links"]) == 3 for node in answer["nodes"])
    assert answer["nodes"][0]["probe"]["all_reduce"]["backend"] == "gloo"
    assert not list((tmp_path / "launch-jobs").iterdir())


@pytest.mark.timeout(200)
def test_a_host_that_can_not_be_reached_is_named_and_the_other_examined(nodes: Nodes, tmp_path: Path) -> None:
    code, answer = examine(nodes, tmp_path, "node[1,9]")
    assert complaints(answer).keys() == {"reach node9"}
    assert code == 1
    (node,) = answer["nodes"]
    assert node["name"] == "node1"
    assert node["probe"]["compute"]["fp32"] > 0


@pytest.mark.timeout(200)
def test_four_defects_are_named_and_nothing_else(nodes: Nodes, tmp_path: Path) -> None:
    library = faketime()
    assert library is not None
    nodes.misname("node1", "127.0.1.1")
    nodes.shape("node2", "100mbit")
    nodes.hold("node3", 0.5)
    nodes.shift_clock("node4", AHEAD_S, library)
    code, answer = examine(nodes, tmp_path)
    found = complaints(answer)
    assert found.keys() == {"names node1", "link node2", "cores node3", "clock node4"}, found
    assert "127.0.1.1" in found["names node1"]
    assert "Gbit/s" in found["link node2"]
    assert "of its" in found["cores node3"]
    assert f"{AHEAD_S}.0" in found["clock node4"]
    assert "ahead" in found["clock node4"]
    assert code == 1
