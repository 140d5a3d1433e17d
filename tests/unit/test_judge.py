"""The doctor's judgement of constructed facts: each defect alone, several at once, none."""

from __future__ import annotations

import statistics
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch.cluster import Cluster
from launch.doctor import host_names, to_json, understand
from launch.facts import Node
from launch.finding import Finding, blame, strangers
from launch.judge import Verdict, judge

GBIT = 1e9 / 8

MACHINE: dict[str, Any] = {
    "host": "", "kernel": "6.1", "python": "3.11.2", "processor": "Xeon", "instruction_sets": ["avx2", "avx512f"],
    "sockets": 2, "numa_nodes": 2, "cores": 16, "cpus": 16, "machine_cpus": 32, "quota": None,
    "governor": "performance", "driver": "intel_pstate", "max_mhz": 3500, "memory_bytes": 256 << 30,
    "free_bytes": 250 << 30, "shm_bytes": 128 << 30, "disk_bytes": 1 << 40,
    "limits": {"nofile": 65536, "memlock": -1, "nproc": -1}, "rdma": False, "speeds": {"eth0": 10000},
}
COMPUTE: dict[str, Any] = {
    "threads": 16, "share": 0.99, "idle_cores": 0.0, "stolen_cores": 0.0,
    "fp32": 1000.0, "bf16": 2000.0, "memory": 150.0,
    "fp32_undisturbed": 1000.0, "bf16_undisturbed": 2000.0, "memory_undisturbed": 150.0,
}


class Facts:
    """Healthy nodes n0, n1, ..., for a test to spoil."""

    def __init__(self, count: int) -> None:
        self.cluster: dict[str, Any] = {"launcher": "mpirun", "hosts": [f"n{i}" for i in range(count)]}
        self.machines = [{**MACHINE, "host": f"n{i}", "limits": dict(MACHINE["limits"])} for i in range(count)]
        self.probes: list[dict[str, Any] | None] = [{
            "host": f"n{i}", "finished": True, "versions": {"python": "3.11.2", "torch": "2.13.0", "oneccl": "2021"},
            "own_name": [f"10.0.0.{i}"], "addresses": [f"10.0.0.{i}"], "address": f"10.0.0.{i}", "interface": "eth0",
            "absent": [], "unseen": [], "resolved": {str(j): [f"10.0.0.{j}"] for j in range(count) if j != i},
            "compute": dict(COMPUTE), "all_reduce": None,
            "links": {str(j): {"received": 9.4 * GBIT, **(
                {"latency_s": 2e-5, "ahead_s": 1e-4, "clock_error_s": 2e-5} if i < j else {})}
                for j in range(count) if j != i},
        } for i in range(count)]

    def probe(self, rank: int) -> dict[str, Any]:
        found = self.probes[rank]
        assert found is not None
        return found

    def slow_link(self, a: int, b: int, part: float = 0.01) -> None:
        for link in (self.probe(a)["links"][str(b)], self.probe(b)["links"][str(a)]):
            if "received" in link:
                link["received"] *= part

    def shift_clock(self, rank: int, seconds: float) -> None:
        for other in range(len(self.probes)):
            if other != rank:
                low, high = min(rank, other), max(rank, other)
                link = self.probe(low)["links"][str(high)]
                if "ahead_s" in link:
                    link["ahead_s"] += seconds if rank == high else -seconds

    def verdict(self, lost: tuple[Finding, ...] = ()) -> Verdict:
        cluster = Cluster.model_validate(self.cluster)
        nodes = [Node.model_validate({"name": f"n{i}", "machine": machine, "probe": probe})
                 for i, (machine, probe) in enumerate(zip(self.machines, self.probes, strict=True))]
        made = judge(cluster, nodes, lost)
        to_json(cluster, nodes, made)
        return made

    def complaints(self) -> set[tuple[str, ...]]:
        return {(finding.check, *finding.hosts) for finding in self.verdict().findings}


@pytest.mark.parametrize("count", [1, 2, 3, 4, 9])
def test_nothing_is_wrong_with_healthy_nodes(count: int) -> None:
    verdict = Facts(count).verdict()
    assert verdict.findings == ()
    assert verdict.notes == ()


def spoil(facts: Facts, what: str, rank: int) -> tuple[str, ...]:
    """Give a node one defect; the complaint that it should raise."""
    host, machine, probe, count = f"n{rank}", facts.machines[rank], facts.probe(rank), len(facts.probes)
    compute = probe["compute"]
    others = [other for other in range(count) if other != rank]
    if what == "quota":
        machine["quota"] = 0.5
        compute |= {"share": 0.5, "threads": 1, "fp32": 30.0, "bf16": 60.0, "memory": 5.0}
        return ("cores", host)
    if what == "hidden quota":
        compute |= {"share": 0.5, "idle_cores": 8.0, "fp32": 500.0, "bf16": 900.0, "memory": 60.0}
        return ("cores", host)
    if what == "busy":
        compute |= {"share": 0.6, "fp32": 600.0, "memory": 80.0, "fp32_undisturbed": None, "bf16_undisturbed": None}
        return ("cores", host)
    if what == "slow cores":
        compute |= {"fp32": 700.0, "fp32_undisturbed": 700.0}
        return ("speed", host)
    if what == "slow memory":
        compute |= {"memory": 90.0, "memory_undisturbed": 90.0}
        return ("memory", host)
    if what == "link":
        for other in others:
            facts.slow_link(rank, other)
        return ("link", host)
    if what == "no link":
        for other in others:
            for a, b in ((rank, other), (other, rank)):
                facts.probe(a)["links"][str(b)] = {"error": "timed out"}
        return ("link", host)
    if what == "far":
        for other in others:
            facts.probe(min(rank, other))["links"][str(max(rank, other))]["latency_s"] = 0.003
        return ("latency", host)
    if what == "clock":
        facts.shift_clock(rank, -3.0)
        return ("clock", host)
    if what == "own name":
        probe["own_name"] = ["127.0.1.1"]
        return ("names", host)
    if what == "no name":
        probe["own_name"] = []
        return ("names", host)
    if what == "others' names":
        for other in others:
            facts.probe(other)["resolved"][str(rank)] = ["10.9.9.9"]
        return ("names", host)
    if what == "folder":
        probe["unseen"] = others
        for other in others:
            facts.probe(other)["unseen"] = [*facts.probe(other)["unseen"], rank]
        return ("folder", host)
    if what == "version":
        probe["versions"] = {**probe["versions"], "torch": "2.9.0"}
        return ("versions", host)
    if what == "oneccl":
        probe["versions"] = {**probe["versions"], "oneccl": None}
        return ("versions", host)
    if what == "instruction sets":
        machine["instruction_sets"] = ["avx2"]
        return ("processor", host)
    if what == "governor":
        machine["governor"] = "powersave"
        return ("frequency", host)
    if what == "memory":
        machine["free_bytes"] = 20 << 30
        return ("memory", host)
    if what == "module":
        machine |= {"memory_bytes": 192 << 30, "free_bytes": 188 << 30}
        return ("memory", host)
    if what == "disk":
        machine["disk_bytes"] = 1 << 20
        return ("disk", host)
    if what == "shm":
        machine["shm_bytes"] = 1 << 20
        return ("shm", host)
    if what == "limits":
        machine["limits"]["nofile"] = 256
        return ("limits", host)
    if what == "locked":
        machine["rdma"] = True
        machine["limits"]["memlock"] = 65536
        return ("limits", host)
    assert what == "probe"
    facts.probes[rank] = None
    for other in others:
        facts.probe(other)["absent"] = [rank]
        del facts.probe(other)["links"][str(rank)]
    return ("probe", host)


DEFECTS = ("quota", "hidden quota", "busy", "slow cores", "slow memory", "link", "no link", "far", "clock", "own name",
           "no name", "others' names", "folder", "version", "oneccl", "instruction sets", "governor", "memory",
           "module", "disk", "shm", "limits", "locked", "probe")


@pytest.mark.parametrize("count", [3, 4, 8])
@pytest.mark.parametrize("what", DEFECTS)
def test_each_defect_alone(what: str, count: int) -> None:
    for rank in range(count):
        facts = Facts(count)
        assert facts.complaints() == set()
        expected = spoil(facts, what, rank)
        assert facts.complaints() == {expected}


def test_every_finding_says_why_and_what_to_do() -> None:
    for what in DEFECTS:
        facts = Facts(4)
        spoil(facts, what, 2)
        for finding in facts.verdict().findings:
            assert finding.fact
            assert finding.cause
            assert finding.remedy


@given(st.lists(st.sampled_from([what for what in DEFECTS if what != "probe"]), min_size=4, max_size=4, unique=True),
       st.permutations(range(10)))
def test_four_defects_on_four_of_ten_nodes(whats: list[str], ranks: list[int]) -> None:
    facts = Facts(10)
    expected = {spoil(facts, what, rank) for what, rank in zip(whats, ranks, strict=False)}
    assert facts.complaints() == expected


def test_four_defects_on_four_nodes() -> None:
    facts = Facts(4)
    expected = {spoil(facts, what, rank) for rank, what in enumerate(("own name", "link", "hidden quota", "clock"))}
    assert facts.complaints() == expected


def test_a_node_held_back_and_with_a_slow_link_has_both() -> None:
    facts = Facts(4)
    expected = {spoil(facts, "hidden quota", 1), spoil(facts, "link", 1)}
    assert facts.complaints() == expected


def test_tcp_of_half_a_core_is_no_slow_link() -> None:
    facts = Facts(4)
    facts.probe(1)["compute"] |= {"threads": 1, "share": 0.5, "idle_cores": 15.0}
    for other in (0, 2, 3):
        facts.slow_link(1, other, 0.3)
    assert facts.complaints() == {("cores", "n1")}


def test_an_end_that_waited_for_a_processor_is_no_slow_link() -> None:
    facts = Facts(4)
    facts.slow_link(0, 1, 0.3)
    assert facts.complaints() == {("link", "n0", "n1")}
    facts.probe(1)["links"]["0"]["waited"] = 0.6
    assert facts.complaints() == set()


def test_two_nodes_name_the_pair_where_it_may_be_either() -> None:
    facts = Facts(2)
    facts.slow_link(0, 1)
    for machine in facts.machines:
        machine["speeds"] = {}
    assert facts.complaints() == set()  # there is nothing to compare with
    for machine in facts.machines:
        machine["speeds"] = {"eth0": 1000}
    assert {finding[0] for finding in facts.complaints()} == {"link"}
    facts = Facts(2)
    facts.shift_clock(1, 5.0)
    assert facts.complaints() == {("clock", "n0", "n1")}
    facts = Facts(2)
    for rank in (0, 1):
        facts.probe(rank)["links"][str(1 - rank)] = {"error": "timed out"}
    assert facts.complaints() == {("link", "n0", "n1")}
    facts = Facts(2)
    spoil(facts, "version", 1)
    assert facts.complaints() == {("versions", "n0"), ("versions", "n1")}
    for what in ("slow cores", "hidden quota"):  # slower is worse, whoever the other is
        facts = Facts(2)
        assert facts.complaints() | {spoil(facts, what, 1)} == facts.complaints()


def test_one_direction_of_two_nodes() -> None:
    facts = Facts(2)
    facts.probe(0)["links"]["1"]["received"] *= 0.01
    assert facts.complaints() == {("link", "n0", "n1")}


def test_a_slow_pair_of_good_nodes_is_a_pair() -> None:
    facts = Facts(5)
    facts.slow_link(1, 3)
    assert facts.complaints() == {("link", "n1", "n3")}


def test_two_slow_nodes_of_four() -> None:
    facts = Facts(4)
    for a, b in ((0, 1), (0, 2), (0, 3), (1, 2), (1, 3)):
        facts.slow_link(a, b)
    assert facts.complaints() == {("link", "n0"), ("link", "n1")}


def test_a_node_that_told_nothing_of_its_links_is_not_blamed_for_them() -> None:
    facts = Facts(4)
    facts.probe(2)["links"] = {}
    assert facts.complaints() == set()


def test_a_port_that_runs_slower_is_the_likely_cause() -> None:
    facts = Facts(3)
    spoil(facts, "link", 2)
    facts.machines[2]["speeds"] = {"eth0": 100}
    (finding,) = facts.verdict().findings
    assert "100 Mbit/s" in finding.cause


def test_the_cluster_file_is_compared_with_the_cores() -> None:
    facts = Facts(3)
    facts.cluster["node"] = {"sockets": 2, "cores_per_socket": 8, "threads_per_core": 2}
    assert facts.complaints() == set()
    facts.cluster["node"] = {"sockets": 2, "cores_per_socket": 16, "threads_per_core": 2}
    assert facts.complaints() == {("cores", "n0"), ("cores", "n1"), ("cores", "n2")}
    facts.cluster["node"] = {"sockets": 2, "cores_per_socket": 8, "threads_per_core": 2}
    facts.machines[1]["cores"] = 8
    (finding,) = facts.verdict().findings
    assert "8 of its 16 cores may be used" in finding.fact


def test_different_machines_are_no_fault_where_the_file_says_so() -> None:
    facts = Facts(4)
    facts.cluster |= {"node": {"sockets": 2, "cores_per_socket": 8, "threads_per_core": 2},
                      "hosts": ["n0", "n1", {"hosts": ["n2", "n3"], "node": {"cores_per_socket": 4}}]}
    for rank in (2, 3):
        facts.machines[rank] |= {"processor": "EPYC", "cores": 4, "cpus": 4, "machine_cpus": 4, "sockets": 1,
                                 "instruction_sets": ["avx2"], "memory_bytes": 64 << 30, "free_bytes": 62 << 30}
        facts.probe(rank)["compute"] |= {"threads": 4, "fp32": 100.0, "fp32_undisturbed": 100.0,
                                         "memory": 40.0, "memory_undisturbed": 40.0, "bf16_undisturbed": 90.0}
    verdict = facts.verdict()
    assert verdict.findings == ()
    assert "2 kinds of processor" in verdict.notes[0]


def test_speeds_of_busy_nodes_are_not_compared() -> None:
    facts = Facts(4)
    for rank in range(4):
        facts.probe(rank)["compute"] |= {"share": 0.4, "fp32": 100.0 * (1 + rank), "fp32_undisturbed": None,
                                         "bf16_undisturbed": None, "memory_undisturbed": None}
    verdict = facts.verdict()
    assert verdict.findings == ()
    assert "40% of their cores" in verdict.notes[0]


def test_parts_of_one_machine_share_its_cores() -> None:
    facts = Facts(4)
    for rank in range(4):
        facts.probe(rank)["boot"] = "same"
    spoil(facts, "busy", 0)
    spoil(facts, "slow cores", 1)
    assert facts.complaints() == set()
    facts.probe(0)["boot"] = "another"
    assert facts.complaints() == {("cores", "n0")}
    assert facts.complaints() | {spoil(facts, "hidden quota", 2)} == facts.complaints()


def test_the_all_reduce_is_judged_where_nothing_explains_it() -> None:
    def give(facts: Facts, gbit: float) -> None:
        for rank in range(4):
            facts.probe(rank)["all_reduce"] = {"bytes": 1 << 26, "seconds": 1.0, "bandwidth": gbit * GBIT,
                                               "small_s": 1e-4, "backend": "gloo", "why": ""}

    facts = Facts(4)
    give(facts, 5.0)
    assert facts.complaints() == set()
    give(facts, 0.3)
    assert facts.complaints() == {("all-reduce", "n0", "n1", "n2", "n3")}
    spoil(facts, "link", 2)
    assert facts.complaints() == {("link", "n2")}
    facts = Facts(2)
    facts.probe(1)["all_reduce_error"] = "no way"
    assert facts.complaints() == {("all-reduce", "n0", "n1")}


def test_a_host_that_lacks_torch_and_one_that_does_not_reach_the_first() -> None:
    facts = Facts(4)
    for rank in (0, 3):
        facts.probe(rank)["absent"] = [1, 2]
        facts.probe(rank)["links"] = {str(3 - rank): facts.probe(rank)["links"][str(3 - rank)]}
    facts.probes[1] = {"host": "n1", "error": "a package is missing: No module named 'torch'"}
    facts.probes[2] = {"host": "n2", "error": "start: failed to connect", "own_name": ["10.0.0.2"]}
    verdict = facts.verdict()
    assert [finding.hosts for finding in verdict.findings] == [("n1",), ("n2",)]
    assert "torch" in verdict.findings[0].fact
    assert "does not reach n0" in verdict.findings[1].cause


def test_a_probe_that_died_explains_the_others() -> None:
    facts = Facts(4)
    for rank in range(4):
        facts.probe(rank)["finished"] = False
    for rank in (0, 1, 2):
        facts.probe(rank)["error"] = "start: wait timeout"
    assert facts.complaints() == {("probe", "n3")}


def test_lost_hosts_are_told_first() -> None:
    lost = Finding("reach", ("n9",), "gone", "off", "switch it on")
    assert Facts(2).verdict((lost,)).findings == (lost,)


@given(st.dictionaries(st.text(max_size=3), st.integers(0, 2), max_size=7))
def test_strangers_are_a_minority_or_everybody(values: dict[str, int]) -> None:
    common, found = strangers(values)
    named = [host for hosts in found.values() for host in hosts]
    if len(set(values.values())) < 2:
        assert named == []
    elif common is None:
        assert sorted(named) == sorted(values)
    else:
        assert statistics.mode(values.values()) == common
        assert set(named) == {host for host, value in values.items() if value != common}


@given(st.integers(3, 8), st.sets(st.integers(0, 7), max_size=3))
def test_blame_finds_the_nodes_all_of_whose_links_are_bad(count: int, bad: set[int]) -> None:
    pairs = [(f"n{a}", f"n{b}") for a in range(count) for b in range(a + 1, count)]
    bad = {node for node in bad if node < count}
    if len(bad) > count - 2:
        return
    guilty, rest = blame([pair for pair in pairs if any(f"n{node}" in pair for node in bad)], pairs)
    assert guilty == sorted(f"n{node}" for node in bad)
    assert rest == []


def test_what_a_silent_host_answers() -> None:
    assert understand("n1", 0, "abc\n", "", "abc") is None
    other = understand("n1", 0, "xyz\n", "", "abc")
    assert other is not None
    assert other.check == "folder"
    blind = understand("n1", 1, "", "Traceback\nFileNotFoundError: [Errno 2]", "abc")
    assert blind is not None
    assert blind.check == "folder"
    off = understand("n1", 1, "", "-----\nssh: connect to host n1 port 22: No route to host\x1b[2J\nORTE lost\n", "abc")
    assert off is not None
    assert (off.check, off.hosts) == ("reach", ("n1",))
    assert "No route to host" in off.fact
    assert "\x1b" not in off.fact


def test_which_hosts_are_examined() -> None:
    cluster = Cluster.model_validate({"launcher": "mpirun", "hosts": ["n[1-3]"], "nodes": 2})
    assert host_names(cluster, None) == ["n1", "n2"]
    assert host_names(cluster, 3) == ["n1", "n2", "n3"]
    assert host_names(Cluster.model_validate({"launcher": "slurm"}), 2) == [None, None]
    assert host_names(Cluster(), None) == [None]
