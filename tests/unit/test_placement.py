"""Laws of sharing a machine out among ranks."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distrib.errors import ConfigError
from launch.placement import WITHIN_NODE, Placement, Wishes, count_ranks, place
from launch.topology import Core, Topology, describe

PLAIN = Wishes()


def topology(*cores_by_node: int, threads: int = 1, quota: float | None = None) -> Topology:
    """Nodes with so many cores each; second threads are numbered after all first ones, as on Intel."""
    total = sum(cores_by_node)
    nodes = [node for node, count in enumerate(cores_by_node) for _ in range(count)]
    cores = tuple(Core(tuple(i + t * total for t in range(threads)), node, node) for i, node in enumerate(nodes))
    return Topology(cores, {node: node for node in nodes}, quota, total * threads)


@st.composite
def topologies(draw: st.DrawFn) -> Topology:
    """Any machine, or what a cpuset and a quota leave of it."""
    whole = topology(*draw(st.lists(st.integers(1, 9), min_size=1, max_size=4)), threads=draw(st.integers(1, 2)))
    width = draw(st.integers(1, 9))  # cores of a last-level cache
    cores = []
    for number, core in enumerate(whole.cores):
        cpus = draw(st.sampled_from([core.cpus, core.cpus[:1], core.cpus[-1:], ()]))
        if cpus:
            cores.append(Core(cpus, core.socket, core.node, number // width * width))
    cores = cores or [whole.cores[0]]
    count = sum(len(core.cpus) for core in cores)
    quota = draw(st.none() | st.floats(0.1, count, exclude_max=True))
    return Topology(tuple(cores), {core.node: core.node for core in cores}, quota, whole.machine_cpus)


all_wishes = st.builds(Wishes, st.none() | st.integers(1, 12), st.integers(0, 3), st.booleans())


def owners(made: Placement, machine: Topology) -> list[set[int]]:
    """For each core, the ranks that have some hardware thread of it."""
    return [{rank for rank, where in enumerate(made.places) if set(core.cpus) & {*where.cpus, *where.comm_cpus}}
            for core in machine.cores]


@given(topologies(), st.integers(1, 40), all_wishes)
def test_laws(machine: Topology, num_ranks: int, wishes: Wishes) -> None:
    try:
        made = place(machine, num_ranks, wishes)
    except ConfigError:
        assert wishes.comm_cores
        assert wishes.comm_cores >= WITHIN_NODE * (len(machine.cores) // num_ranks)
        return
    assert len(made.places) == num_ranks
    uses = Counter(cpu for where in made.places for cpu in where.cpus + where.comm_cpus)
    assert set(uses) <= set(machine.cpus)  # none outside the allowed
    assert all(where.cpus == tuple(sorted(set(where.cpus))) and where.cpus for where in made.places)
    threads = wishes.threads_per_rank
    assert all(where.threads == threads if threads else 1 <= where.threads <= len(where.cpus) for where in made.places)
    of = owners(made, machine)
    assert all(of[i] for i in range(min(num_ranks, len(machine.cores))))  # no core idle
    if num_ranks <= len(machine.cores):
        assert all(len(ranks) == 1 for ranks in of)  # no core in two ranks
    else:
        assert made.warnings
        firsts = {core.cpus[0] for core in machine.cores}
        if set(uses) - firsts:
            assert firsts <= set(uses)  # physical cores before second threads
        if num_ranks >= len(machine.cpus):
            assert max(uses.values()) - min(uses.values()) <= 1
            assert len(uses) == len(machine.cpus)
    if set(machine.cpus) - set(uses):
        assert any("idle" in note for note in made.notes)
        if wishes.hyper_threads and not wishes.comm_cores:
            assert num_ranks > len(machine.cores)
    if threads is None and machine.quota is not None and not wishes.comm_cores:
        assert sum(where.threads for where in made.places) <= max(num_ranks, machine.quota)


@given(topologies(), st.integers(1, 20), all_wishes)
def test_laws_of_communication_cores(machine: Topology, num_ranks: int, wishes: Wishes) -> None:
    try:
        made = place(machine, num_ranks, wishes)
    except ConfigError:
        return
    core_of = {cpu: core for core in machine.cores for cpu in core.cpus}
    for where in made.places:
        computing, aside = ({core_of[cpu] for cpu in cpus} for cpus in (where.cpus, where.comm_cpus))
        assert len(aside) == len(where.comm_cpus) == wishes.comm_cores
        assert not computing & aside  # not even the other threads of a core
        assert all(core.cpus[0] in where.comm_cpus for core in aside)
        nodes = Counter(core.node for core in computing | aside)
        if len(nodes) == 1:
            assert sorted(aside, key=machine.cores.index) == sorted(
                computing | aside, key=machine.cores.index)[len(computing):]  # the last of the run
        if max(nodes.values()) >= wishes.comm_cores > 0:
            assert len({core.node for core in aside}) == 1
        if where.memory_node is not None:
            assert {machine.memory_nearest[core.node] for core in computing | aside} == {where.memory_node}


@given(topologies(), st.integers(1, 40))
def test_the_smallest_share_is_nearly_as_large_as_it_can_be(machine: Topology, num_ranks: int) -> None:
    if num_ranks > len(machine.cores):
        return
    core_of = {cpu: i for i, core in enumerate(machine.cores) for cpu in core.cpus}
    sizes = [len({core_of[cpu] for cpu in where.cpus}) for where in place(machine, num_ranks, PLAIN).places]
    assert sum(sizes) == len(machine.cores)
    assert min(sizes) >= WITHIN_NODE * (len(machine.cores) // num_ranks)


@given(topologies(), all_wishes)
def test_auto_fits(machine: Topology, wishes: Wishes) -> None:
    num_ranks = count_ranks(machine, wishes)
    assert 1 <= num_ranks <= len(machine.cores)
    if wishes.comm_cores >= len(machine.cores):
        with pytest.raises(ConfigError, match=f"comm_cores is {wishes.comm_cores}"):
            place(machine, num_ranks, wishes)
        return
    made = place(machine, num_ranks, wishes)
    threads = wishes.threads_per_rank
    if num_ranks > 1:  # with one rank the wish may be more than the machine, or its quota, has
        assert not made.warnings
        if threads:
            assert all(len(where.cpus) >= threads for where in made.places)
    elif threads is None and not wishes.comm_cores:
        assert not made.warnings


@given(topologies(), st.integers(1, 30), all_wishes)
def test_places_do_not_depend_on_anything_but_the_arguments(machine: Topology, num_ranks: int, wishes: Wishes) -> None:
    try:
        first = place(machine, num_ranks, wishes)
    except ConfigError:
        return
    assert place(Topology(machine.cores, dict(machine.memory_nearest), machine.quota, 1), num_ranks, wishes) == first


@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 4), st.integers(1, 4))
def test_ranks_of_a_numa_node_stay_on_it(sockets: int, nodes: int, per_node: int, width: int) -> None:
    machine = describe(sockets, nodes, nodes * per_node * width, 2)
    num_ranks = count_ranks(machine, PLAIN, per_node)
    assert num_ranks == sockets * nodes * per_node
    node_of = {cpu: core.node for core in machine.cores for cpu in core.cpus}
    made = place(machine, num_ranks, PLAIN)
    assert [{node_of[cpu] for cpu in where.cpus} for where in made.places] == [
        {node} for node in range(sockets * nodes) for _ in range(per_node)]
    assert {len(where.cpus) for where in made.places} == {width}


def test_one_rank_a_socket() -> None:
    made = place(topology(4, 4, threads=2), 2, PLAIN)
    assert [where.cpus for where in made.places] == [(0, 1, 2, 3), (4, 5, 6, 7)]
    assert [where.memory_node for where in made.places] == [0, 1]
    assert [where.threads for where in made.places] == [4, 4]
    assert made.notes == ("idle: CPUs 8-15, second hardware threads of cores in use",)


def test_a_socket_that_lost_a_core_keeps_its_rank() -> None:
    assert [where.memory_node for where in place(topology(31, 32), 4, PLAIN).places] == [0, 0, 1, 1]
    assert [where.memory_node for where in place(topology(7, 9), 2, PLAIN).places] == [0, 1]


def test_an_uneven_number_of_ranks_crosses_nodes_rather_than_starve_one() -> None:
    made = place(topology(8, 8), 3, PLAIN)
    assert sorted(len(where.cpus) for where in made.places) == [5, 5, 6]
    assert [where.threads for where in made.places] == [5, 5, 5]  # ranks wait for the slowest
    assert [where.memory_node for where in made.places] == [0, None, 1]


def test_a_rank_too_many_goes_to_the_first_node() -> None:
    assert [len(where.cpus) for where in place(topology(4, 4), 3, PLAIN).places] == [2, 2, 4]


def test_second_threads_are_used_when_wished() -> None:
    made = place(topology(2, threads=2), 1, Wishes(4))
    assert made.places[0].cpus == (0, 1, 2, 3)
    assert made.places[0].threads == 4
    assert not made.warnings


def test_more_ranks_than_cores_take_second_threads_and_then_go_round() -> None:
    made = place(topology(2, threads=2), 5, PLAIN)
    assert [where.cpus for where in made.places] == [(0,), (1,), (2,), (3,), (0,)]
    assert len(made.warnings) == 1
    assert "5 ranks share 2 cores" in made.warnings[0]


def test_a_quota_limits_threads_and_leaves_the_choice_of_cpus_to_the_kernel() -> None:
    machine = topology(4, 4, threads=2, quota=5.5)
    made = place(machine, 2, PLAIN)
    assert [where.threads for where in made.places] == [2, 2]
    assert [where.cpus for where in made.places] == [(0, 1, 2, 3, 8, 9, 10, 11), (4, 5, 6, 7, 12, 13, 14, 15)]
    assert "5.5" in made.notes[0]
    assert place(topology(64, quota=1.5), 1, PLAIN).places[0].threads == 1


def test_more_ranks_than_quota_is_told() -> None:
    assert "quota" in place(topology(8, quota=2.0), 4, PLAIN).warnings[0]


def test_auto() -> None:
    assert count_ranks(topology(8, 8), PLAIN) == 2
    assert count_ranks(topology(8, 8), Wishes(4)) == 4
    assert count_ranks(topology(7, 7), Wishes(4)) == 2  # a third would cross
    assert count_ranks(topology(8, 8, quota=1.0), PLAIN) == 1
    assert count_ranks(topology(2), Wishes(4)) == 1


def test_memory_where_there_is_one_node_is_no_choice() -> None:
    assert place(topology(4), 2, PLAIN).places[0].memory_node is None


def test_communication_cores_are_the_last_of_each_run() -> None:
    made = place(topology(4, 4, threads=2), 2, Wishes(comm_cores=1))
    assert [(where.cpus, where.threads, where.comm_cpus, where.memory_node) for where in made.places] == [
        ((0, 1, 2), 3, (3,), 0), ((4, 5, 6), 3, (7,), 1)]
    assert made.notes == ("idle: CPUs 8-15, second hardware threads of cores in use",)


def test_communication_does_not_straddle_nodes_where_a_rank_does() -> None:
    made = place(topology(8, 8), 3, Wishes(comm_cores=2))
    assert [where.comm_cpus for where in made.places] == [(3, 4), (6, 7), (14, 15)]
    assert made.places[1].cpus == (5, 8, 9)


def test_communication_does_not_take_the_last_core() -> None:
    with pytest.raises(ConfigError) as caught:
        place(topology(4, 4), 4, Wishes(comm_cores=2))
    assert str(caught.value) == (
        "comm_cores is 2, and of 4 ranks on 8 cores the smallest has 2 cores: none would be left to compute. "
        "Nothing was started. Set comm_cores to 1 at most, or ask for fewer ranks.")
    with pytest.raises(ConfigError, match="of 3 ranks on 2 cores the smallest has 1 core"):
        place(topology(2), 3, Wishes(comm_cores=1))
    assert count_ranks(topology(4, 1), Wishes(comm_cores=1)) == 2  # the second node has no core for it: they cross
    assert count_ranks(topology(1, 1), Wishes(comm_cores=1)) == 1


def test_hyper_threads_compute_when_wished() -> None:
    made = place(topology(4, 4, threads=2), 2, Wishes(comm_cores=1, hyper_threads=True))
    assert [(where.cpus, where.threads, where.comm_cpus) for where in made.places] == [
        ((0, 1, 2, 8, 9, 10), 6, (3,)), ((4, 5, 6, 12, 13, 14), 6, (7,))]
    assert made.notes == ("idle: CPUs 11,15, second hardware threads of cores in use",)
    assert not place(topology(4, threads=2), 1, Wishes(hyper_threads=True)).notes
    assert count_ranks(topology(8, threads=2), Wishes(4, 0, True)) == 4


def test_communication_is_part_of_the_quota() -> None:
    made = place(topology(16, quota=8.0), 2, Wishes(comm_cores=1))
    assert [where.threads for where in made.places] == [3, 3]
    assert not made.warnings
    made = place(topology(16, quota=3.0), 2, Wishes(comm_cores=1))
    assert "2 ranks of 4 threads or more share 3 CPUs" in made.warnings[0]


def test_threads_that_leave_cores_to_other_work_are_told() -> None:
    made = place(topology(8), 1, Wishes(4))
    assert (made.places[0].cpus, made.places[0].threads) == (tuple(range(8)), 4)
    assert "fewer than the 8" in made.notes[0]


def test_runs_do_not_straddle_last_level_caches() -> None:
    whole = describe(1, 1, 32, 1, caches_per_socket=4)
    holed = Topology(tuple(core for core in whole.cores if core.cpus != (17,)), {0: 0})  # 8, 8, 7 and 8 cores
    for machine in (whole, holed):
        for num_ranks in (2, 4, 8):
            cache_of = {cpu: core.cache for core in machine.cores for cpu in core.cpus}
            caches = [{cache_of[cpu] for cpu in where.cpus} for where in place(machine, num_ranks, PLAIN).places]
            assert sum(map(len, caches)) == max(4, num_ranks), num_ranks
    # Three ranks would have 8, 16 and 8: better are 10, 11 and 11.
    assert sorted(len(where.cpus) for where in place(whole, 3, PLAIN).places) == [10, 11, 11]


def test_a_share_is_not_made_smaller_than_the_threads_wished() -> None:
    assert [len(where.cpus) for where in place(topology(7, 9), 2, Wishes(8)).places] == [8, 8]
    assert [len(where.cpus) for where in place(topology(7, 9), 2, Wishes(7)).places] == [7, 9]
