from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import pytest

from distrib.train.cause import Evidence, likely_causes
from distrib.train.readings import NodeReading, RankReading
from distrib.train.slow import RECENT, Scores, Standing, periods_until_look


def looks(scores: Scores, *work_s: Sequence[float], first_look: int = 0) -> list[Standing]:
    """Ten steps a look; how the ranks stand after the last."""
    return [scores.take(10 * number + 1, look) for number, look in enumerate(work_s, first_look)][-1]


def slow(standings: Sequence[Standing]) -> dict[int, int]:
    return {rank: s.slow_since for rank, s in enumerate(standings) if s.slow_since is not None}


def test_a_rank_that_is_slow_from_the_start_is_named_against_the_others_alone() -> None:
    standings = looks(Scores(1.5), *[[1.0, 1.1, 3.0, 0.9]] * RECENT)
    assert slow(standings) == {2: 1}
    assert standings[2].against_others == pytest.approx(3.0)
    assert standings[2].against_past is None
    assert standings[2].is_against_others


def test_one_or_two_looks_name_nobody_and_one_bad_look_among_good_ones_neither() -> None:
    scores = Scores(1.5)
    for number in range(RECENT - 1):
        assert not slow(scores.take(number, [1.0, 9.0, 1.0]))
    scores = Scores(1.5)
    for number, work_s in enumerate([1, 1, 1, 50, 1, 1, 50, 1, 1, 1, 1]):
        assert not slow(scores.take(number, [1.0, float(work_s), 1.0]))


def test_a_rank_that_becomes_slow_is_named_since_the_look_at_which_it_did() -> None:
    scores = Scores(1.5)
    assert not slow(looks(scores, *[[1.0, 1.0, 1.0]] * 7))
    assert not slow(scores.take(71, [1.0, 1.0, 3.0]))
    standings = scores.take(81, [1.0, 1.0, 3.0])
    assert slow(standings) == {2: 71}
    assert standings[2].against_past == pytest.approx(3.0)


def test_of_two_ranks_the_slower_one_is_named_and_the_faster_one_is_not() -> None:
    standings = looks(Scores(1.5), *[[1.0, 2.0]] * RECENT)
    assert slow(standings) == {1: 1}
    assert standings[0].against_others == pytest.approx(0.5)
    assert standings[1].against_others == pytest.approx(2.0)


def test_two_ranks_that_both_become_slow_are_named_against_their_own_past() -> None:
    standings = looks(Scores(1.5), *[[1.0, 1.0]] * 6, *[[2.0, 2.0]] * 3)
    assert slow(standings) == {0: 61, 1: 61}
    assert not standings[0].is_against_others
    assert standings[0].score == pytest.approx(2.0)


def test_a_rank_alone_is_compared_with_its_own_best() -> None:
    scores = Scores(1.5)
    standings = looks(scores, *[[2.0]] * 3, *[[1.0]] * 3)
    assert not slow(standings)
    standings = looks(scores, *[[1.0]] * 3, *[[2.0]] * 40, first_look=6)  # it stays slow, however long
    assert slow(standings) == {0: 91}
    assert standings[0].against_others is None
    assert standings[0].against_past == pytest.approx(2.0)


def test_a_rank_that_recovers_is_slow_no_more_but_not_at_the_first_look_below_the_factor() -> None:
    scores = Scores(2.0)
    assert slow(looks(scores, *[[1.0, 1.0, 2.5]] * 4)) == {2: 1}
    assert slow(looks(scores, *[[1.0, 1.0, 1.8]] * 4, first_look=4)) == {2: 1}  # above the root of 2
    assert not slow(looks(scores, *[[1.0, 1.0, 1.0]] * 2, first_look=8))
    assert not slow(looks(scores, *[[1.0, 1.0, 1.8]] * 4, first_look=10))


def test_half_of_the_ranks_may_be_slow() -> None:
    assert slow(looks(Scores(1.5), *[[1.0, 2.0, 1.0, 2.0]] * RECENT)) == {1: 1, 3: 1}
    assert not slow(looks(Scores(1.5), *[[1.0, 1.4, 1.0, 1.4]] * 30))


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 8, 64])
@pytest.mark.parametrize("seed", range(5))
def test_noise_of_a_tenth_with_hiccups_names_nobody(num_ranks: int, seed: int) -> None:
    draw = random.Random(seed)
    scores = Scores(1.5)
    since_hiccup = [0] * num_ranks
    for look in range(300):
        work_s = []
        for rank in range(num_ranks):
            since_hiccup[rank] += 1
            hiccup = since_hiccup[rank] > RECENT and draw.random() < 0.05
            since_hiccup[rank] = 0 if hiccup else since_hiccup[rank]
            work_s.append(0.2 * (1 + draw.uniform(-0.1, 0.1)) * (10 if hiccup else 1))
        assert not slow(scores.take(look, work_s))


def test_looks_come_every_so_many_periods_by_the_median_of_the_ranks() -> None:
    assert periods_until_look([0.5, 0.5, 60.0], 10.0) == 20
    assert periods_until_look([30.0], 10.0) == 1
    assert periods_until_look([0.0, 0.0], 10.0) == 10_000_000


def evidence(*, data_s: float = 0.0, others_cores: float = 0.0, node: NodeReading | None = None,
             **reading: float) -> Evidence:
    whole = {"own_cores": 1.0, "waited_s": 0.0, "throttled": 0.0, **reading}
    return Evidence(data_s, RankReading(**whole), node or NodeReading(50.0, 2, 0.0, 8.0, 8.0, 0.0, 1.0, 1.0),
                    others_cores)


AGAINST_OTHERS = Standing(3.0, 3.0, None, 1)  # 2 s longer than the others
AGAINST_PAST = Standing(3.0, 1.0, 3.0, 1)


@pytest.mark.parametrize(("mine", "kind", "words"), [
    (lambda: evidence(data_s=2.4), "data", "it waits for data 80% of that time"),
    (lambda: evidence(waited_s=1.5), "processor", "it waits for a processor 50% of that time"),
    (lambda: evidence(waited_s=1.5, others_cores=1.04), "processor",
     "it waits for a processor 50% of that time, other processes keep 1.0 of its node's 2 processors busy"),
    (lambda: evidence(waited_s=float("nan"), others_cores=1.0, node=NodeReading(99.0, 2)), "processor",
     "other processes keep 1.0 of its node's 2 processors busy"),
    (lambda: evidence(throttled=0.8), "limit", "the CPU limit of its cgroup stops it in 80% of periods"),
    (lambda: evidence(node=NodeReading(90.0, 2, 31.0)), "steal",
     "the hypervisor gives 31% of its node's processor time to others"),
    (lambda: evidence(node=NodeReading(90.0, 2, 0.0, 15.0, 0.2, 40.0)), "swap",
     "its node swaps 40 MB/s, with 0.2 GB of memory available"),
    (lambda: evidence(ghz=1.2), "clock", "its processor runs at 1.2 GHz, the others' at 2.6"),
])
@pytest.mark.parametrize("standing", [AGAINST_OTHERS, AGAINST_PAST])
def test_a_cause_is_named_from_what_was_told(standing: Standing, mine: Callable[[], Evidence], kind: str,
                                             words: str) -> None:
    others = [evidence(ghz=2.6), evidence(ghz=2.6)]
    assert likely_causes(1, standing, [others[0], mine(), others[1]]) == {kind: words}


@pytest.mark.parametrize("mine", [
    evidence(),
    evidence(data_s=0.5, waited_s=0.5, throttled=0.01, others_cores=2.0),  # too little of 2 s
    Evidence(0.0, RankReading(), NodeReading(), float("nan")),  # a system that tells nothing
])
def test_no_cause_is_made_up(mine: Evidence) -> None:
    assert likely_causes(0, AGAINST_OTHERS, [mine, evidence(), evidence()]) == {}
    assert likely_causes(0, Standing(3.0, None, 3.0, 1), [mine]) == {}


def test_what_all_ranks_have_in_common_makes_none_of_them_slower_than_the_others() -> None:
    common = [evidence(data_s=2.5, waited_s=2.5)] * 3
    assert likely_causes(0, AGAINST_OTHERS, common) == {}
    assert likely_causes(0, AGAINST_PAST, common).keys() == {"data", "processor"}
