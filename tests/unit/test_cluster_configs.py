"""Every example in cluster_configs, planned for a machine of the kind that it is written for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from launch.cluster import load_cluster
from launch.placement import Place, count_ranks, place
from launch.plan import build_plan, build_remote_plan, wishes_of
from launch.topology import read_topology
from tests.rig.machines import SHAPES, Shape, build

CONFIGS = Path(__file__).resolve().parents[2] / "cluster_configs"
TWO_SOCKETS = SHAPES["two sockets"]
MACHINES: dict[str, list[Shape]] = {
    "dev": [SHAPES["small VM"]],
    "container": [SHAPES["container of 1.5 CPUs"]],
    "xeon-mpirun": [replace(TWO_SOCKETS, cores_per_socket=28)] * 4,
    "mixed": [*[replace(TWO_SOCKETS, cores_per_socket=14)] * 2,
              replace(TWO_SOCKETS, sockets=1, numa_per_socket=4, cores_per_socket=56)],
    "slurm": [replace(SHAPES["sub-NUMA clusters"], cores_per_socket=28, numbering="blocks")] * 4,
}
"""By file: the machines in the order of its hosts."""


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_planned_for_its_machines(path: Path, tmp_path: Path) -> None:
    cluster, machines = load_cluster(path), MACHINES[path.stem]
    topologies = [read_topology(build(tmp_path / str(number), shape), allowed=shape.usable)
                  for number, shape in enumerate(machines)]
    if cluster.launcher == "local":
        plan = build_plan(cluster, topologies[0], ["true"], host="here")
    else:
        plan = build_remote_plan(cluster, ["true"])
        assert len(plan.layout()[0]) == len(machines)
    # What a login node plans from the file alone is what each host's supervisor will find.
    seen: list[Place] = []
    for topology, count in zip(topologies, plan.layout()[1], strict=True):
        if cluster.ranks_per_node == "auto":
            assert count == count_ranks(topology, wishes_of(cluster), cluster.ranks_per_numa_node)
        seen += place(topology, count, wishes_of(cluster)).places
    assert [rank.place for rank in plan.ranks] == seen
    assert not plan.warnings
    assert plan.cluster.name == path.stem
