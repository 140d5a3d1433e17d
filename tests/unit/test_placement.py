"""Laws of sharing a machine out among ranks."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from launch.placement import WITHIN_NODE, count_ranks, place
from launch.topology import Core, Topology


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
    cores = []
    for core in whole.cores:
        cpus = draw(st.sampled_from([core.cpus, core.cpus[:1], core.cpus[-1:], ()]))
        if cpus:
            cores.append(Core(cpus, core.socket, core.node))
    cores = cores or [whole.cores[0]]
    count = sum(len(core.cpus) for core in cores)
    quota = draw(st.none() | st.floats(0.1, count, exclude_max=True))
    return Topology(tuple(cores), {core.node: core.node for core in cores}, quota, whole.machine_cpus)


@given(topologies(), st.integers(1, 40), st.none() | st.integers(1, 12))
def test_laws(machine: Topology, num_ranks: int, threads: int | None) -> None:
    made = place(machine, num_ranks, threads)
    assert len(made.places) == num_ranks
    uses = Counter(cpu for where in made.places for cpu in where.cpus)
    assert set(uses) <= set(machine.cpus)  # none outside the allowed
    assert all(where.cpus == tuple(sorted(set(where.cpus))) and where.cpus for where in made.places)
    assert all(where.threads == threads if threads else where.threads >= 1 for where in made.places)
    owners = [{rank for rank, where in enumerate(made.places) if set(core.cpus) & set(where.cpus)}
              for core in machine.cores]
    assert all(owners[i] for i in range(min(num_ranks, len(machine.cores))))  # no core idle
    if num_ranks <= len(machine.cores):
        assert all(len(ranks) == 1 for ranks in owners)  # no core in two ranks
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
    if threads is None and machine.quota is not None:
        assert sum(where.threads for where in made.places) <= max(num_ranks, machine.quota)


@given(topologies(), st.integers(1, 40))
def test_the_smallest_share_is_nearly_as_large_as_it_can_be(machine: Topology, num_ranks: int) -> None:
    if num_ranks > len(machine.cores):
        return
    core_of = {cpu: i for i, core in enumerate(machine.cores) for cpu in core.cpus}
    sizes = [len({core_of[cpu] for cpu in where.cpus}) for where in place(machine, num_ranks).places]
    assert sum(sizes) == len(machine.cores)
    assert min(sizes) >= WITHIN_NODE * (len(machine.cores) // num_ranks)


@given(topologies(), st.none() | st.integers(1, 12))
def test_auto_fits(machine: Topology, threads: int | None) -> None:
    num_ranks = count_ranks(machine, threads)
    made = place(machine, num_ranks, threads)
    assert 1 <= num_ranks <= len(machine.cores)
    if threads is None:
        assert not made.warnings
    elif num_ranks > 1:  # with one rank the wish may be more than the machine has
        assert num_ranks * threads <= len(machine.cores)


@given(topologies())
def test_places_do_not_depend_on_anything_but_the_arguments(machine: Topology) -> None:
    assert place(machine, 3) == place(machine, 3)


def test_one_rank_a_socket() -> None:
    made = place(topology(4, 4, threads=2), 2)
    assert [where.cpus for where in made.places] == [(0, 1, 2, 3), (4, 5, 6, 7)]
    assert [where.memory_node for where in made.places] == [0, 1]
    assert [where.threads for where in made.places] == [4, 4]
    assert made.notes == ("idle: CPUs 8-15, second hardware threads of cores that compute",)


def test_a_socket_that_lost_a_core_keeps_its_rank() -> None:
    assert [where.memory_node for where in place(topology(31, 32), 4).places] == [0, 0, 1, 1]
    assert [where.memory_node for where in place(topology(7, 9), 2).places] == [0, 1]


def test_an_uneven_number_of_ranks_crosses_nodes_rather_than_starve_one() -> None:
    made = place(topology(8, 8), 3)
    assert sorted(len(where.cpus) for where in made.places) == [5, 5, 6]
    assert [where.memory_node for where in made.places] == [0, None, 1]


def test_second_threads_are_used_when_wished() -> None:
    made = place(topology(2, threads=2), 1, threads_per_rank=4)
    assert made.places[0].cpus == (0, 1, 2, 3)
    assert made.places[0].threads == 4
    assert not made.warnings


def test_more_ranks_than_cores_take_second_threads_and_then_go_round() -> None:
    made = place(topology(2, threads=2), 5)
    assert [where.cpus for where in made.places] == [(0,), (1,), (2,), (3,), (0,)]
    assert len(made.warnings) == 1
    assert "5 ranks share 2 cores" in made.warnings[0]


def test_a_quota_limits_threads_and_leaves_the_choice_of_cpus_to_the_kernel() -> None:
    machine = topology(4, 4, threads=2, quota=5.5)
    made = place(machine, 2)
    assert [where.threads for where in made.places] == [2, 2]
    assert [where.cpus for where in made.places] == [(0, 1, 2, 3, 8, 9, 10, 11), (4, 5, 6, 7, 12, 13, 14, 15)]
    assert "5.5" in made.notes[0]
    assert place(topology(64, quota=1.5), 1).places[0].threads == 1


def test_more_ranks_than_quota_is_told() -> None:
    assert "quota" in place(topology(8, quota=2.0), 4).warnings[0]


def test_auto() -> None:
    assert count_ranks(topology(8, 8), None) == 2
    assert count_ranks(topology(8, 8), 4) == 4
    assert count_ranks(topology(7, 7), 4) == 2  # a third would cross
    assert count_ranks(topology(8, 8, quota=1.0), None) == 1
    assert count_ranks(topology(2), 4) == 1


def test_memory_where_there_is_one_node_is_no_choice() -> None:
    assert place(topology(4), 2).places[0].memory_node is None
