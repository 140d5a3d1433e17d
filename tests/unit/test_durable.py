from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distrib.durable import (
    SealError,
    begin_staging,
    open_sealed,
    publish_dir,
    remove_tree,
    replace_file,
    seal,
    seal_digest,
    sha256_file,
)

values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]),
                                                                        max_size=4), inner, max_size=3),
    max_leaves=6,
)
BODY = {"classes": ["benign", "mélanome"], "label": 1, "zeros": "0" * 64}
RAW = seal("distrib-dataset/1", BODY)


@settings(max_examples=60)
@given(st.dictionaries(st.sampled_from("abcd"), values), st.sampled_from([None, 1, 2]))
def test_a_sealed_document_comes_back_as_it_was(body: dict[str, Any], indent: int | None) -> None:
    raw = seal("some/1", body, indent=indent)
    document = open_sealed(raw, "some/1")
    assert {name: document[name] for name in body} == body
    assert document.keys() == {"format", "sha256", *body}
    assert raw == seal("some/1", body, indent=indent)
    assert document["sha256"] == seal_digest(raw)
    assert json.loads(raw) == document


@settings(max_examples=150)
@given(st.integers(0, len(RAW) - 1), st.integers(1, 255))
def test_any_changed_byte_is_found(place: int, change: int) -> None:
    damaged = bytearray(RAW)
    damaged[place] ^= change
    with pytest.raises(SealError):
        open_sealed(bytes(damaged), "distrib-dataset/1")


@pytest.mark.parametrize("damaged", [b"", b"{}", b"[]", RAW[:-1], RAW + b" ", RAW[:100], b"\xff" * 200, RAW.lower()[1:],
                                     b" " + RAW, RAW.replace(b"benign", b"malign")])
def test_cut_or_edited_documents_are_refused(damaged: bytes) -> None:
    with pytest.raises(SealError):
        open_sealed(damaged, "distrib-dataset/1")


def test_the_digest_is_that_of_the_bytes_with_zeros_in_its_place() -> None:
    digest = seal_digest(RAW)
    # The body holds 64 zeros of its own, which must not be taken for the digest's place.
    assert digest == hashlib.sha256(RAW.replace(digest.encode(), b"0" * 64)).hexdigest()
    assert open_sealed(RAW, "distrib-dataset/1")["zeros"] == "0" * 64


def test_another_format_is_named() -> None:
    with pytest.raises(SealError, match=r"'distrib-dataset/1', expected 'distrib-dataset/2'"):
        open_sealed(RAW, "distrib-dataset/2")


def test_what_json_does_not_have_is_not_sealed() -> None:
    with pytest.raises(ValueError, match="JSON"):
        seal("some/1", {"score": float("nan")})


def test_a_file_is_replaced_in_one_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file.json"
    path.write_bytes(b"before")
    replace, moves = os.replace, []

    def watched(source: Path, target: Path) -> None:
        moves.append((path.read_bytes(), Path(source).read_bytes()))
        replace(source, target)

    monkeypatch.setattr(os, "replace", watched)
    replace_file(path, b"after")
    assert moves == [(b"before", b"after")]
    assert path.read_bytes() == b"after"
    assert os.listdir(tmp_path) == ["file.json"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failed_replacement_changes_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                        step: str) -> None:
    path = tmp_path / "file.json"
    path.write_bytes(b"before")

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, step, refuse)
    with pytest.raises(OSError, match="No space"):
        replace_file(path, b"after")
    assert path.read_bytes() == b"before"
    assert os.listdir(tmp_path) == ["file.json"]


def test_publishing_does_not_overwrite(tmp_path: Path) -> None:
    staging, final = tmp_path / "staging", tmp_path / "final"
    staging.mkdir()
    (staging / "new").touch()
    final.mkdir()
    (final / "old").touch()
    with pytest.raises(OSError, match="not empty"):
        publish_dir(staging, final)
    assert os.listdir(final) == ["old"]
    assert os.listdir(staging) == ["new"]
    publish_dir(staging, tmp_path / "other")
    assert os.listdir(tmp_path / "other") == ["new"]
    assert not staging.exists()


def test_a_folder_is_gone_from_its_name_before_anything_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    doomed = tmp_path / "step-1"

    def make() -> None:
        doomed.mkdir()
        (doomed / "weights").touch()

    make()
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda *_, **__: None)  # killed before it got to removing
        remove_tree(doomed)
    assert not doomed.exists()
    [leftover] = tmp_path.iterdir()
    assert leftover.name.endswith(".removed")
    make()
    remove_tree(doomed)  # the leftover of a process with the same id is not in the way
    assert os.listdir(tmp_path) == []


def test_digest_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256_file(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_what_a_killed_process_left_in_staging_is_removed_and_what_lives_is_not(tmp_path: Path) -> None:
    mine = begin_staging(tmp_path / "out", lambda _: None)
    gone, other = (mine.with_name(mine.name.replace(str(os.getpid()), pid)) for pid in ("99999999", "1"))
    mine.rmdir()
    for left in (gone, other):
        left.mkdir()
    told: list[str] = []
    assert begin_staging(tmp_path / "out", told.append) == mine
    assert sorted(tmp_path.iterdir()) == sorted((mine, other))
    assert len(told) == 2
