"""Candidate against current: paired intervals, what is refused, classes that one of them does not know."""

from __future__ import annotations

import numpy as np
import pytest

from distrib.config import EvaluateConfig
from distrib.data import frozen
from distrib.data.manifest import Manifest, Shard, ShardIndex, Split, SplitSamples
from distrib.decision import Threshold
from distrib.errors import ConfigError, DataError
from distrib.registry.compare import Answers, check_known, check_metric, compare, over_classes, refusal
from distrib.registry.entry import Compared
from distrib.scoring import Logits

CLASSES = ("a", "b", "c")


def answers(labels: list[int], wrong: set[int]) -> Answers:
    """Right but for these samples."""
    logits = np.zeros((len(labels), 3), dtype=np.float32)
    for i, label in enumerate(labels):
        logits[i, (label + (i in wrong)) % 3] = 3
    return Answers(logits, None)


def test_the_interval_of_the_difference_is_paired_by_sample_and_drawn_by_group() -> None:
    labels = [i % 3 for i in range(300)]
    groups = [f"g{i // 3}" for i in range(300)]
    both = set(range(60))  # that both get wrong says nothing of their difference
    candidate, current = answers(labels, both | {100, 101, 102}), answers(labels, both)
    one = compare(candidate, current, np.array(labels), groups, CLASSES, EvaluateConfig(), 500)["accuracy"]
    assert one.difference == pytest.approx(-0.01)
    assert one.low is not None
    assert one.high is not None
    alone = compare(candidate, None, np.array(labels), groups, CLASSES, EvaluateConfig(), 500)["accuracy"]
    assert alone.low is not None
    assert alone.high is not None
    assert one.high - one.low < (alone.high - alone.low) / 2
    # The three wrong ones are one group: drawn singly, they would hardly be missing from a resample.
    assert one.high == 0
    singly = compare(candidate, current, np.array(labels), list(map(str, range(300))), CLASSES, EvaluateConfig(), 500)
    high = singly["accuracy"].high
    assert high is not None
    assert high <= 0
    low = singly["accuracy"].low
    assert low is not None
    assert low > one.low


def compared(difference: float, low: float, high: float) -> dict[str, Compared]:
    one = Compared(candidate=0.9 + difference, current=0.9, difference=difference, low=low, high=high)
    return {"accuracy": one, "loss": one,
            "auroc": Compared(candidate=None, current=None, difference=None, low=None, high=None)}


@pytest.mark.parametrize(("metric", "difference", "low", "high", "margin", "strict", "words"), [
    ("accuracy", 0.0, -0.01, 0.01, 0.0, False, None),
    ("accuracy", -0.01, -0.02, -0.005, 0.01, False, None),
    ("accuracy", -0.01, -0.02, -0.005, 0.009, False, "accuracy fell from 0.9000 to 0.8900.*beyond chance"),
    ("accuracy", -0.01, -0.02, 0.005, 0.0, False, "which may be chance"),
    ("accuracy", 0.01, -0.02, 0.03, 0.01, True, "does not rule out a loss beyond --margin 0.01"),
    ("accuracy", 0.01, -0.01, 0.03, 0.01, True, None),
    ("loss", 0.01, 0.005, 0.02, 0.0, False, "loss rose from 0.9000 to 0.9100.*beyond chance"),
    ("loss", -0.01, -0.02, 0.005, 0.0, False, None),
    ("loss", -0.01, -0.02, 0.005, 0.0, True, "does not rule out"),
])
def test_what_is_refused(metric: str, difference: float, low: float, high: float, margin: float, strict: bool,
                         words: str | None) -> None:
    found = refusal(compared(difference, low, high), metric, margin, strict)
    if words is None:
        assert found is None
    else:
        assert found is not None
        assert pytest.raises(AssertionError, match=words).matches(AssertionError(found))


def test_a_metric_without_a_value_decides_nothing() -> None:
    with pytest.raises(DataError, match="auroc is not defined"):
        refusal(compared(0, 0, 0), "auroc", 0.0, False)


def test_a_metric_that_the_candidate_has_no_value_of_can_not_begin_a_registry() -> None:
    none = Compared(candidate=None, current=None, difference=None, low=None, high=None)
    with pytest.raises(DataError, match="auroc is not defined"):
        check_metric({"auroc": none}, "auroc")
    with pytest.raises(ConfigError, match="Choose one of auroc"):
        check_metric({"auroc": none}, "x")


def test_a_class_that_a_model_does_not_know_has_no_probability() -> None:
    logits: Logits = np.array([[1, 2]], dtype=np.float32)
    threshold = Threshold(value=0.1, positive_class="a", sensitivity=1, specificity=1, num_samples=1)
    padded = over_classes(Answers(logits, threshold), ("b", "a"), CLASSES)
    assert padded.logits_NK[0].argmax() == 0
    assert np.exp(padded.logits_NK[0, 2] - padded.logits_NK[0, 0]) == 0
    assert padded.threshold is None
    with pytest.raises(DataError, match="knows the class 'x'"):
        check_known(("a", "x"), CLASSES)


def test_a_threshold_stays_where_only_the_order_of_the_classes_differs() -> None:
    threshold = Threshold(value=0.1, positive_class="a", sensitivity=1, specificity=1, num_samples=1)
    turned = over_classes(Answers(np.array([[1, 2]], dtype=np.float32), threshold), ("b", "a"), ("a", "b"))
    assert (turned.logits_NK.tolist(), turned.threshold) == ([[2, 1]], threshold)


def shard(split: Split, version: int, groups: str, crc: int) -> Shard:
    keys = tuple(f"{split}{version}{i}" for i in range(len(groups)))
    numbers = tuple(range(len(groups)))
    index = ShardIndex(key=keys, kind=tuple("png" for _ in keys), offset=tuple(512 + 10 * i for i in numbers),
                       length=(10,) * len(keys), crc32=tuple(crc + i for i in numbers),
                       label=tuple(i % 2 for i in numbers), group=tuple(groups))
    return Shard(name=f"{split}-{version}.tar", split=split, num_samples=len(keys), bytes=9999, sha256="0" * 64,
                 version=version, index=index)


def manifest(*shards: Shard, classes: tuple[str, ...] = ("a", "b")) -> Manifest:
    version = max(shard.version for shard in shards)
    ancestors = ("1" * 64, "2" * 64)[:version - 1]
    return Manifest(classes=classes, shards=shards, preparation={}, version=version, ancestors=ancestors,
                    parent=ancestors[-1] if ancestors else None, sha256="f" * 64)


def test_leaks_are_found_by_group_and_by_image_up_to_the_version_trained_on() -> None:
    test = shard("test", 1, "tuvw", 40)
    whole = manifest(shard("train", 1, "abc", 0), shard("val", 1, "d", 20), test, shard("train", 2, "t", 60),
                     shard("val", 3, "z", 42))
    samples = whole.samples("test")
    assert (frozen.version_of(whole, "1" * 64), frozen.version_of(whole, "f" * 64)) == (1, 3)
    assert frozen.version_of(whole, "3" * 64) is None
    assert frozen.leaks(samples, frozen.seen_by(whole, "test", 1)) == []
    assert frozen.leaks(samples, frozen.seen_by(whole, "test", 2)) == ["test10"]  # the group t
    assert frozen.leaks(samples, frozen.seen_by(whole, "test", 3)) == ["test10", "test12"]  # and an image


def test_the_identity_of_a_split_is_what_it_holds() -> None:
    one = manifest(shard("train", 1, "abc", 0), shard("test", 1, "tuvw", 40)).samples("test")
    digest = frozen.split_digest(one)
    assert digest == frozen.split_digest(SplitSamples("test", ("a", "b", "c"), one.shards))
    assert len({digest, *(frozen.split_digest(SplitSamples("test", ("a", "b"), (other,))) for other in (
        shard("test", 1, "tuv", 40), shard("test", 1, "tuvx", 40), shard("test", 1, "tuvw", 41)))}) == 4
    assert digest != frozen.split_digest(SplitSamples("test", ("a", "c"), one.shards))
