"""Cluster files: what is accepted, and how mistakes are told."""

from __future__ import annotations

from pathlib import Path

import pytest

from distrib.errors import ConfigError
from launch.cluster import LAUNCHERS, OWN_NAMES, Cluster, load_cluster

CONFIGS = Path(__file__).resolve().parents[2] / "cluster_configs"


def test_dev() -> None:
    assert load_cluster(CONFIGS / "dev.yaml") == Cluster(name="dev", launcher="local", ranks_per_node=2)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.name)
def test_every_example_loads(path: Path) -> None:
    assert load_cluster(path).name


def test_an_empty_file_is_a_cluster(tmp_path: Path) -> None:
    path = tmp_path / "empty.yaml"
    path.write_text("")
    assert load_cluster(path) == Cluster(name="empty")


def test_keys_can_be_overridden(tmp_path: Path) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text("ranks_per_node: 2\nenv: {A: '1'}\n")
    made = load_cluster(path, ["ranks_per_node=auto", "env.B=2", "grace_s=0.5"])
    assert (made.ranks_per_node, made.env, made.grace_s) == ("auto", {"A": "1", "B": 2}, 0.5)


@pytest.mark.parametrize(("text", "told"), [
    ("rank_per_node: 2", "did you mean 'ranks_per_node'?"),
    ("ranks_per_node: 0", "ranks_per_node"),
    ("ranks_per_node: many", "ranks_per_node"),
    ("ranks_per_node: 1.5", "ranks_per_node"),
    ("launcher: slurmm", "there is local, mpirun, slurm"),
    ("allocator: mimalloc", "allocator"),
    ("threads_per_rank: -1", "threads_per_rank"),
    ("grace_s: .inf", "grace_s"),
    ("grace_s: -1", "grace_s"),
    ("env: [A]", "env"),
    ("env: {RANK: '0'}", "launcher itself sets RANK"),
    ("env: {A B: x}", "no name of an environment variable"),
    ("env: {A=B: x}", "no name of an environment variable"),
    ("env: {A: true}", "in quotes"),
    ('env: {A: "x\\0y"}', "zero byte"),
    ("env: {A: [1]}", "env"),
    ("launcher: mpirun\nhosts: ['a[1-40000]', 'b[1-40000]']", "more than 65536 hosts"),
    ("launcher: mpirun\nhosts: [{hosts: ['a[1-40000]']}, {hosts: ['b[1-40000]']}]", "more than 65536 hosts"),
    ("launcher: mpirun\nhosts: [a, 'b[1-2]', b2]", "the host b2 stands twice"),
    ("launcher: slurm\nstop_grace_s: 120", "stop_grace_s (120) must be less than slurm.stop_signal_s (120)"),
    ("launcher: slurm\nslurm: {stop_signal_s: 30}", "stop_grace_s (60) must be less than slurm.stop_signal_s (30)"),
    ('name: ""', "name"),
    ('name: "a\\nb"', "name"),
    ("- a", "list"),
    ("name: [", "not valid YAML"),
    ("name: a\nname: b", "stands twice"),
])
def test_mistakes_are_one_clear_line(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_cluster(path)
    assert told in str(caught.value)
    assert "cluster.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_many_hosts_are_no_mistake(tmp_path: Path) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text("launcher: mpirun\nhosts: ['a[00001-60000]']\nstop_grace_s: 500\n")
    assert len(load_cluster(path).groups[0].hosts) == 60000


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml can not be read"):
        load_cluster(tmp_path / "nowhere.yaml")


def test_launchers_are_modules_of_ours() -> None:
    assert all(module.startswith("launch.") for module in LAUNCHERS.values())
    assert "RANK" in OWN_NAMES
