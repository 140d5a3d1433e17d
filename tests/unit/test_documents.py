"""YAML as users write it: every trap is either read as meant or refused in one line."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import Field

from distrib.config import Experiment
from distrib.documents import KINDS, Section, apply_overrides, parse_yaml, read_yaml, validate
from distrib.errors import ConfigError
from distrib.tune.study import Study
from launch.cluster import Cluster


class Inner(Section):
    rate: float = 0.1
    steps: int = 1


class Outer(Section):
    inner: Inner = Inner()
    maybe: Inner | None = None
    free: dict[str, Inner] = Field(default_factory=dict)
    name: str


def refusal(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_yaml(text, "the file f")
    assert caught.value.one_line().count("\n") == 0
    return caught.value.fact


@pytest.mark.parametrize(("text", "value"), [
    ("1e-3", 1e-3), ("1E5", 1e5), ("-2e+3", -2000.0), ("1.5e-3", 1.5e-3), (".5e1", 5.0), ("3", 3), ("0.1", 0.1),
    ("1e", "1e"), ("e-3", "e-3"), ("1e-3x", "1e-3x"), ("'1e-3'", "1e-3"), ("true", True), ("~", None), ("", None),
])
def test_plain_values(text: str, value: Any) -> None:
    read = parse_yaml(f"key: {text}", "it")["key"]
    assert read == value
    assert type(read) is type(value)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_number_that_python_writes_is_read_as_that_number(number: float) -> None:
    read = parse_yaml(f"key: {number!r}", "it")["key"]
    assert read == number
    assert isinstance(read, float)


@pytest.mark.parametrize(("text", "place", "reason"), [
    ("a: 1\nb: 2\na: 3", "line 3 column 1", "the key 'a' stands twice"),
    ("t:\n  a: 1\n  a: 2", "line 3 column 3", "the key 'a' stands twice"),
    ("t: {a: 1, 'a': 2}", "line 1 column 11", "the key 'a' stands twice"),
    ("- {a: 1, a: 2}", "line 1 column 10", "the key 'a' stands twice"),
    ("a: &x 1\nb: *x", "line 2 column 4", "aliases"),
    ("a: [1, 2\nb: 3", "line 2", "not valid YAML"),
    ("a: b: c", "line 1 column 5", "not valid YAML"),
    ("a: !!python/object/apply:os.system [true]", "line 1 column 4", "tag"),
    ("a: !!python/name:os.system", "line 1 column 4", "tag"),
    ("[a]: 1", "line 1 column 1", "key"),
    ("? {a: 1}\n: 1", "line 1 column 3", "key"),
    ("a: 2024-13-45", "line 1 column 4", "'2024-13-45' is no timestamp"),
    ("a: !!int five", "line 1 column 4", "'five' is no int"),
    ("a: !!bool maybe", "line 1 column 4", "'maybe' is no bool"),
    ("a: !!map b", "line 1 column 4", "mapping"),
    ("a: 0x_", "line 1 column 4", "'0x_' is no int"),
    (f"a: {'9' * 5000}", "line 1 column 4", "is no int"),
    ("a: 1\n---\nb: 2", "line 2 column 1", "not valid YAML"),
    ("\ta: 1", "line 1 column 1", "not valid YAML"),
    ("a: \x07", "", "not valid YAML"),
    ("[" * 5000, "", "nested too deeply"),
    ("{a: " * 2000, "", "nested too deeply"),
])
def test_what_is_refused_and_where(text: str, place: str, reason: str) -> None:
    fact = refusal(text)
    assert fact.startswith("the file f")
    assert place in fact
    assert reason in fact


@settings(max_examples=150)
@given(st.text(st.sampled_from("ab01.eE+-_:?,[]{}&*!#|>'\"%@` \n\t~<=xn"), max_size=24))
@example("? [a]")
@example("a: =")
@example("!!set [1]")
@example("<<: 3")
def test_any_text_is_read_or_refused_in_one_way(text: str) -> None:
    with suppress(ConfigError):  # anything else would fail the test
        parse_yaml(text, "it")


@pytest.mark.parametrize(("content", "reason"), [
    (b"a: \xff\xfe\n", "not UTF-8 text (byte 3)"),
    ("name: mélanome".encode("latin-1"), "not UTF-8"),
    (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "not UTF-8"),
    (b"PK\x03\x04" + bytes(30), "not valid YAML"),
    (b"a: 1\n" * 300_000, "larger than 1 MiB"),
    (b"- a\n- b\n", "holds a list"),
    (b"just words\n", "holds a str"),
    (b"7\n", "holds a int"),
])
def test_files_that_are_no_experiment(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "experiment.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        read_yaml(path, "experiment")
    assert str(path) in caught.value.fact
    assert reason in caught.value.fact
    assert caught.value.remedy


def test_paths_that_are_no_file(tmp_path: Path) -> None:
    for path, reason in ((tmp_path, "Is a directory"), (tmp_path / "none", "No such file"),
                         (Path("/dev/zero"), "larger than 1 MiB")):
        with pytest.raises(ConfigError, match=reason) as caught:
            read_yaml(path, "experiment")
        assert str(path) in caught.value.fact


def test_files_that_are_read(tmp_path: Path) -> None:
    path = tmp_path / "experiment.yaml"
    for content, value in ((b"", {}), (b"# nothing\n", {}), (b"\xef\xbb\xbfa: 1\r\nb: 2\r\n", {"a": 1, "b": 2}),
                           ("a: mélanome".encode(), {"a": "mélanome"})):
        path.write_bytes(content)
        assert read_yaml(path, "experiment") == value


def test_overrides_reach_into_sections_and_leave_the_rest() -> None:
    document = {"train": {"lr": 0.1, "lanes": 8}, "seed": 1}
    made = apply_overrides(document, ["train.lr=1e-3", "data.augment.hflip=false", "seed=2", "train.lr = 2e-3",
                                      "names=[a, b]", "empty=", "url=a=b"])
    assert made == {"train": {"lr": 2e-3, "lanes": 8}, "seed": 2, "data": {"augment": {"hflip": False}},
                    "names": ["a", "b"], "empty": None, "url": "a=b"}
    assert document == {"train": {"lr": 0.1, "lanes": 8}, "seed": 1}
    assert apply_overrides({"train": None}, ["train.lr=1"]) == {"train": {"lr": 1}}  # a section with no line in it
    assert apply_overrides(document, ["train={lanes: 2}"]) == {"train": {"lanes": 2}, "seed": 1}


@pytest.mark.parametrize("override", ["train.lr", "=3", ".lr=3", "train..lr=3", "train.=3", "seed.x=1", "", "a=[",
                                      "a=*b", "a={b: 1, b: 2}", "a=2024-13-45"])
def test_overrides_that_are_refused(override: str) -> None:
    with pytest.raises(ConfigError) as caught:
        apply_overrides({"seed": 1}, [override])
    assert "--set" in caught.value.one_line()


@pytest.mark.parametrize(("document", "message"), [
    ({"name": "n", "inner": {"rat": 1}}, "unknown key 'inner.rat' (did you mean 'rate'?)"),
    ({"name": "n", "maybe": {"stps": 1}}, "unknown key 'maybe.stps' (did you mean 'steps'?)"),
    ({"name": "n", "iner": {}}, "unknown key 'iner' (did you mean 'inner'?)"),
    ({"name": "n", "zzzzz": 1}, "unknown key 'zzzzz'"),
    ({}, "'name' is missing"),
    ({"name": 3}, "name = 3: input should be a valid string"),
    ({"name": "n", "inner": {"rate": float("nan")}}, "inner.rate = nan: input should be a finite number"),
    ({"name": "n", "inner": {"rate": float("inf")}}, "inner.rate = inf: input should be a finite number"),
    ({"name": "n", "inner": {"steps": 1.5}}, "inner.steps = 1.5"),
    ({"name": "n", "inner": 3}, "inner = 3: it is a section, with keys of its own: rate, steps"),
    ({"name": "n", "free": {"x.y": 3}}, "free.x.y = 3: it is a section, with keys of its own: rate, steps"),
    ({"name": "n", "free": {"x.y": {"rat": 3}}}, "unknown key 'free.x.y.rat' (did you mean 'rate'?)"),
    ({"name": "n", "inner": None}, "inner = None"),
    ({"name": "n", 1: 2}, "1 = 1: keys should be strings"),
    ([], "the document = []"),
])
def test_mistakes_are_named_with_the_nearest_known_key(document: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        validate(Outer, document, "f")
    assert caught.value.fact.startswith("f: ")
    assert message in caught.value.fact
    if "did you mean" not in message:
        assert "did you mean" not in caught.value.fact


def test_every_mistake_is_told_at_once_but_not_without_end() -> None:
    with pytest.raises(ConfigError) as caught:
        validate(Outer, {"inner": {"rate": "fast", "x": 1}, **{f"k{i}": 1 for i in range(10)}}, "f")
    assert "inner.rate = 'fast'" in caught.value.fact
    assert "'inner.x'" in caught.value.fact
    assert "and 8 more" in caught.value.fact
    assert len(caught.value.one_line()) < 500
    with pytest.raises(ConfigError) as caught:
        validate(Outer, {"name": ["x" * 100_000]}, "f")
    assert len(caught.value.one_line()) < 300


def test_a_section_can_not_be_changed() -> None:
    outer = validate(Outer, {"name": "n", "inner": {"steps": 4}}, "f")
    assert outer.inner.steps == 4
    with pytest.raises(ValueError, match="frozen"):
        outer.inner.steps = 5


@pytest.mark.parametrize(("text", "kind", "told"), [
    ("data: {dataset: d}\nmodel: {name: m}\n", "study", "looks like an experiment, and a study is wanted here. Nothing "
     "was started. Give it to `distrib train`,"),
    ("data: {dataset: d}\nmodel: {name: m}\n", "cluster file", "Give it to `distrib train`,"),
    ("experiment: e.yaml\nkeys: {}\nname: n\n", "experiment", "looks like a study, and an experiment is wanted here"),
    ("experiment: e.yaml\nkeys: {}\n", "cluster file", "Give it to `distrib tune`,"),
    ("name: n\nlauncher: slurm\n", "experiment", "looks like a cluster file, and an experiment is wanted here"),
])
def test_a_document_of_another_kind_is_recognised(text: str, kind: str, told: str, tmp_path: Path) -> None:
    path = tmp_path / "file.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_yaml(path, kind)
    assert told in caught.value.one_line()


@pytest.mark.parametrize("text", ["modle: {name: m}", "data: {}\nexperiment: e", "name: n\nseed: 1", "1: 2"])
def test_mistakes_make_no_other_kind(text: str, tmp_path: Path) -> None:
    path = tmp_path / "file.yaml"
    path.write_text(text)
    read_yaml(path, "experiment")


def test_the_kinds_are_told_apart_by_all_their_own_keys() -> None:
    fields = {"experiment": Experiment.model_fields, "study": Study.model_fields, "cluster file": Cluster.model_fields}
    for kind, names in fields.items():
        others = {name for other in fields if other != kind for name in fields[other]}
        assert KINDS[kind][1] == names.keys() - others
