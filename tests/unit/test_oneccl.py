from __future__ import annotations

import re
import zipfile
from pathlib import Path

import pytest

from distrib.comm import building, oneccl, oneccl_build
from distrib.errors import MissingPartError


def test_ranks_of_two_machines_with_one_name_are_told_apart() -> None:
    assert not oneccl.share_names([("a", "1"), ("a", "1"), ("b", "2")])
    assert oneccl.share_names([("a", "1"), ("b", "2"), ("a", "2")])


def test_containers_that_number_their_processes_apart_are_noticed() -> None:
    host, other = ("a", "boot"), ("b", "boot")
    assert oneccl.counted_apart([(*host, "pid:[1]"), (*other, "pid:[2]"), (*host, "pid:[1]")]) is None
    assert oneccl.counted_apart([("a", "boot", "pid:[1]"), ("a", "another", "pid:[2]")]) is None
    assert oneccl.counted_apart([(*other, "pid:[1]"), (*host, "pid:[1]"), (*host, "pid:[2]")]) == (1, 2)


def test_the_address_and_interface_on_the_way_to_another_host() -> None:
    assert oneccl.own_address("127.0.0.1") == "127.0.0.1"
    assert oneccl.interface_of("127.0.0.1") == "lo"
    assert oneccl.interface_of("192.0.2.1") is None


def test_where_it_is_not_built_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert oneccl_build.find_extension() is None
    assert "distrib backends --build oneccl" in str(oneccl.missing())


def test_the_newest_build_of_this_source_serves_whatever_compiled_it(monkeypatch: pytest.MonkeyPatch,
                                                                     tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    key = oneccl_build._key()
    for folder in (f"{key}-g++12.2.0", "torch1.0-0123456789abcdef-g++12.2.0"):
        path = tmp_path / "distrib" / "oneccl" / folder / f"{oneccl_build.NAME}.so"
        path.parent.mkdir(parents=True)
        path.touch()
    assert oneccl_build.find_extension() == path.parent.parent / f"{key}-g++12.2.0" / f"{oneccl_build.NAME}.so"


def test_another_torch_or_source_is_another_build(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    key = oneccl_build._key()
    for name in oneccl_build.SOURCES:
        (tmp_path / name).write_text("// changed")
    monkeypatch.setattr(oneccl_build, "_HERE", tmp_path)
    assert oneccl_build._key() != key


def test_without_a_compiler_nothing_is_built(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingPartError, match=r"needs g\+\+"):
        oneccl_build.build(lambda _: None)
    assert not list(tmp_path.iterdir())


def test_only_what_is_wanted_comes_out_of_a_wheel(tmp_path: Path) -> None:
    wheel = tmp_path / "some.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name in ("p-1.data/data/lib/libfabric.so.1", "p-1.data/data/lib/libtcp-fi.so",
                     "p-1.data/data/lib/libmpi.so",
                     "p-1.data/data/include/oneapi/../../../../evil"):
            archive.writestr(name, "x")
    oneccl_build._unpack(wheel, oneccl_build._KEPT, tmp_path / "out")
    oneccl_build._unpack(wheel, re.compile(r"[^/]+\.data/data/(include/.+)"), tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").rglob("*")) == ["libfabric.so.1", "libtcp-fi.so"]


def test_a_tool_that_fails_is_an_error_with_its_first_complaint(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(MissingPartError, match="could not: error: no such thing"):
        building.run_tool(["sh", "-c", "echo working; echo 'error: no such thing' >&2; exit 3"], {}, "it could not")
    assert "working" in capsys.readouterr().err
