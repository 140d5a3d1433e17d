"""Laws of the split: groups whole, classes in proportion, nothing but the arguments decides."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distrib.data.manifest import SPLITS, Split
from distrib.data.split import (
    keyed_digest,
    missing_classes,
    parse_fractions,
    split_groups,
    split_named,
    torn_groups,
)
from distrib.errors import ConfigError, DataError

THIRDS: dict[Split, float] = {"train": 0.8, "val": 0.1, "test": 0.1}


@st.composite
def labelled(draw: st.DrawFn) -> tuple[list[str], list[int], list[str]]:
    """(group of each sample, label of each sample, classes); groups may hold several classes."""
    num_classes = draw(st.integers(2, 4))
    groups: list[str] = []
    labels: list[int] = []
    for group in range(draw(st.integers(num_classes * 3, 60))):
        size = draw(st.integers(1, 6))
        main = group % num_classes
        groups += [f"patient {group}"] * size
        labels += [main if draw(st.integers(0, 4)) else draw(st.integers(0, num_classes - 1)) for _ in range(size)]
    return groups, labels, [f"class {c}" for c in range(num_classes)]


@settings(max_examples=100)
@given(data=labelled(), seed=st.integers(0, 1000), shuffle=st.randoms(use_true_random=False))
def test_laws(data: tuple[list[str], list[int], list[str]], seed: int, shuffle: random.Random) -> None:
    groups, labels, classes = data
    try:
        by_group = split_groups(groups, labels, classes, THIRDS, seed)
    except DataError:
        few = min(len({g for g, label in zip(groups, labels, strict=True) if label == c}) for c in range(len(classes)))
        assert few < 10, "refused although every class has many groups"
        return
    assert set(by_group) == set(groups), "every group, and so every sample, has a split"
    for split in SPLITS:
        assert {label for g, label in zip(groups, labels, strict=True) if by_group[g] == split} == set(labels)
    pairs = list(zip(groups, labels, strict=True))
    shuffle.shuffle(pairs)
    again = split_groups([g for g, _ in pairs], [label for _, label in pairs], classes, THIRDS, seed)
    assert again == by_group, "the order of the samples must not matter"


@settings(max_examples=30)
@given(sizes=st.lists(st.integers(1, 4), min_size=40, max_size=200), seed=st.integers(0, 99))
def test_proportions_are_as_near_as_groups_allow(sizes: list[int], seed: int) -> None:
    groups = [f"g{g}" for g, size in enumerate(sizes) for _ in range(size)]
    labels = [g % 2 for g, size in enumerate(sizes) for _ in range(size)]
    by_group = split_groups(groups, labels, ["a", "b"], THIRDS, seed)
    for label in (0, 1):
        total = labels.count(label)
        for split, share in THIRDS.items():
            have = sum(by_group[g] == split for g, c in zip(groups, labels, strict=True) if c == label)
            assert abs(have - share * total) <= max(sizes), (split, label, have, share * total)


def test_a_rare_class_in_groups_of_several_images() -> None:
    rng = random.Random(3)
    groups, labels = [], []
    for patient in range(1000):
        for _ in range(rng.randint(1, 9)):
            groups.append(f"p{patient:04d}")
            labels.append(int(rng.random() < 0.02))
    by_group = split_groups(groups, labels, ["benign", "melanoma"], THIRDS, 0)
    counts = Counter((by_group[g], label) for g, label in zip(groups, labels, strict=True))
    prevalence = sum(labels) / len(labels)
    for split, share in THIRDS.items():
        size = counts[split, 0] + counts[split, 1]
        assert abs(size / len(labels) - share) < 0.002
        assert abs(counts[split, 1] - share * sum(labels)) <= 1.0, (split, counts[split, 1], prevalence)


def test_large_groups_are_spread_too() -> None:
    groups = [f"g{g:03d}" for g in range(100) for _ in range(20 if g < 20 else 1)]
    by_group = split_groups(groups, [int(g[1:]) % 2 for g in groups], ["a", "b"], THIRDS, 0)
    large = Counter(by_group[f"g{g:03d}"] for g in range(20))
    assert large == {"train": 16, "val": 2, "test": 2}


def test_another_seed_gives_another_split() -> None:
    groups = [f"g{g}" for g in range(200)]
    labels = [g % 2 for g in range(200)]
    splits = [split_groups(groups, labels, ["a", "b"], THIRDS, seed) for seed in (0, 1)]
    changed = sum(splits[0][g] != splits[1][g] for g in groups)
    assert changed > 20
    assert splits[0] == split_groups(groups, labels, ["a", "b"], THIRDS, 0)


def test_the_split_of_today_is_the_split_of_tomorrow() -> None:
    """The streams of random numbers must not change between versions: these values are pinned."""
    groups = [f"g{g}" for g in range(20)]
    by_group = split_groups(groups, [g % 2 for g in range(20)], ["a", "b"], THIRDS, 7)
    held_out = sorted((g, split) for g, split in by_group.items() if split != "train")
    assert held_out == [("g10", "test"), ("g11", "test"), ("g13", "val"), ("g14", "val")]
    assert keyed_digest(7, "order", "key").hex()[:16] == "17cd3b170c45e443"


def test_every_class_is_in_every_split_when_it_has_just_enough_groups() -> None:
    groups = [f"g{g}" for g in range(103)]
    labels = [0] * 100 + [1] * 3
    by_group = split_groups(groups, labels, ["common", "rare"], THIRDS, 0)
    assert {by_group[g] for g in ("g100", "g101", "g102")} == set(SPLITS)


def test_a_class_too_rare_is_refused_by_name() -> None:
    groups = [f"g{g}" for g in range(100)] + ["one", "one", "one", "two"]
    with pytest.raises(DataError, match=r"3 splits in class 'rare' \(2\)") as caught:
        split_groups(groups, [0] * 100 + [1] * 4, ["common", "rare"], THIRDS, 0)
    assert "--split 0.8/0.2" in caught.value.remedy
    two: dict[Split, float] = {"train": 0.8, "val": 0.2}
    by_group = split_groups(groups, [0] * 100 + [1] * 4, ["common", "rare"], two, 0)
    assert by_group["one"] != by_group["two"]


@pytest.mark.parametrize(("text", "expected"), [
    ("0.8/0.1/0.1", {"train": 0.8, "val": 0.1, "test": 0.1}),
    ("80/10/10", {"train": 0.8, "val": 0.1, "test": 0.1}),
    ("0.9/0.1", {"train": 0.9, "val": 0.1}),
    ("0.7/0/0.3", {"train": 0.7, "test": 0.3}),
    ("1/0/0", {"train": 1.0}),
])
def test_fractions(text: str, expected: dict[Split, float]) -> None:
    assert parse_fractions(text) == pytest.approx(expected)


@pytest.mark.parametrize("text", ["", "a/b/c", "0.8", "0.8/0.1", "0.5/0.5/0.5", "-0.1/1.1", "0/0.5/0.5", "nan/1/0",
                                  "inf/0/0", "0.4/0.2/0.2/0.2", "0.8,0.1,0.1"])
def test_wrong_fractions_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--split"):
        parse_fractions(text)


def test_names_of_splits() -> None:
    assert [split_named(name) for name in (" Train", "VALID", "val", "validation", "Testing", "dev", "")] == \
        ["train", "val", "val", "val", "test", None, None]


def test_splits_of_others_are_judged() -> None:
    assert torn_groups(["a", "a", "b", "c"], ["train", "test", "val", "train"]) == ["a"]
    assert missing_classes({"train": [0, 1], "test": [1, 1]}, ["x", "y"]) == ["the test split has no sample of x"]
