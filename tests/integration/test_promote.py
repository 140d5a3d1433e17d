"""`distrib promote`: better models become current, regressions and leaks do not, and nothing is ever half done."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from distrib.bundle import load_bundle
from distrib.cli import app
from distrib.data.manifest import FILE_NAME, load_manifest
from distrib.entry import run_app
from distrib.errors import BundleError, ConfigError, DataError
from distrib.export.run import run_export
from distrib.registry.run import Terms, run_list, run_promote, run_rollback
from distrib.registry.store import Registry, append, open_registry
from distrib.train.run import run_train
from distrib.train.settle import settle
from distrib.world import World
from tests.conftest import write_dataset

EXPERIMENT = """\
data: {{dataset: {dataset}, image_size: 16}}
model: {{name: small_cnn}}
train: {{steps: {steps}, global_batch: 32, lanes: 2, lr: 0.05, precision: fp32}}
evaluate: {{bootstrap: 0, every_epochs: 100}}
"""
QUICK = {"resamples": 200}


def quiet(_: str) -> None:
    """Says nothing."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """data, leaky (the same with a test patient in training too), bundles good, other, bad. Not to be changed."""
    here = tmp_path_factory.mktemp("promote")
    write_dataset(here / "data", test=60, val=60)
    shutil.copytree(here / "data", here / "leaky")
    for name in ("data", "leaky"):
        regroup(here / name, leak=name == "leaky")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GLOO_SOCKET_IFNAME", "lo")
        torch.set_num_threads(1)
        make(here, "good", 60)
        make(here, "other", 60, "seed=1")
        make(here, "bad", 1)
        make(here, "cheat", 3, f"data.dataset={here / 'leaky'}")
        make(here, "later", 1, source=here / "cheat-run")
        make(here, "fold", 1, "data.folds=2", "data.fold=0")
        make(here, "after-fold", 1, source=here / "fold-run")
    return here


def regroup(dataset: Path, leak: bool) -> None:
    """Groups of two images, each in one split; with ``leak`` one of the test's in training, too."""
    manifest = load_manifest(dataset)
    shards = []
    for shard in manifest.shards:
        groups = tuple(f"{shard.split}-{group}" for group in shard.index.group)
        if leak and shard.name == "train-000000.tar":
            groups = (*groups[:-1], "test-g3")
        shards.append(shard.model_copy(update={"index": shard.index.model_copy(update={"group": groups})}))
    (dataset / FILE_NAME).write_bytes(manifest.model_copy(update={"shards": tuple(shards)}).to_bytes())


def make(here: Path, name: str, steps: int, *overrides: str, source: Path | None = None) -> None:
    experiment = here / f"{name}.yaml"
    experiment.write_text(EXPERIMENT.format(dataset=here / "data", steps=steps))
    run_train(settle(experiment, overrides, here / f"{name}-run", World(), source), World(), quiet)
    run_export(here / f"{name}-run", out=here / name, formats=["torch"], num_samples=4)


def promote(place: Path, name: str, registry: Path, **terms: Any) -> dict[str, Any]:
    return run_promote(place / name, registry, place / "data", Terms(**QUICK | terms), quiet)


def contents(folder: Path) -> dict[str, bytes | str]:
    return {str(path.relative_to(folder)): str(path.readlink()) if path.is_symlink() else path.read_bytes()
            for path in sorted(folder.rglob("*")) if path.is_symlink() or path.is_file()}


def current(registry: Path) -> str:
    return load_bundle(registry / "current").sha256


def test_a_planted_regression_is_refused_unless_forced_with_a_reason(
        place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    registry = tmp_path / "registry"
    words = ("--registry", str(registry), "--data", str(place / "data"), "--bootstrap", "200")
    assert run_app(app, "distrib", ["promote", str(place / "good"), *words, "--json"]) == 0
    first = json.loads(capsys.readouterr().out)
    assert (first["promoted"], first["entry"], first["metrics"]["accuracy"]["difference"]) == (True, 1, None)
    assert current(registry) == load_bundle(place / "good").sha256
    before = contents(registry)

    assert run_app(app, "distrib", ["promote", str(place / "bad"), *words, "--json"]) == 1
    told = capsys.readouterr()
    refused = json.loads(told.out)
    assert (refused["promoted"], refused["entry"], refused["current"]) == (False, None, 1)
    assert refused["metrics"]["accuracy"]["high"] < 0
    assert "refused: accuracy fell from" in told.err
    assert "beyond chance" in told.err
    assert contents(registry) == before

    assert run_app(app, "distrib", ["promote", str(place / "bad"), *words, "--force"]) == 2
    assert "--force is given without --reason" in capsys.readouterr().err
    assert run_app(app, "distrib", ["promote", str(place / "bad"), *words, "--force", "--reason", "a drill"]) == 0
    assert re.search(r"over the one before \(95% interval -0\.\d+ to -0\.\d+\)", capsys.readouterr().err)
    assert current(registry) == load_bundle(place / "bad").sha256
    assert run_app(app, "distrib", ["promote", "--registry", str(registry), "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("     1  ")
    assert lines[1].startswith("*    2  ")
    assert lines[1].endswith("forced  a drill")

    assert run_app(app, "distrib", ["promote", "--registry", str(registry), "--rollback", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["restores"] == 1
    assert current(registry) == load_bundle(place / "good").sha256
    with pytest.raises(ConfigError, match=r"entry 1 of .* is the first"):
        run_rollback(registry, None, "")
    run_rollback(registry, 2, "on second thoughts")
    entries = run_list(registry)["entries"]
    assert [(entry["number"], entry["parent"], entry["restores"]) for entry in entries] == \
        [(1, None, None), (2, 1, None), (3, 2, 1), (4, 3, 2)]
    assert all(contents(registry)[name] == content for name, content in before.items()
               if name not in ("current", "lock"))
    with pytest.raises(ConfigError, match="is the current bundle"):
        promote(place, "bad", registry)
    better = promote(place, "other", registry, strict=True)
    assert better["metrics"]["accuracy"]["low"] > 0
    assert current(registry) == load_bundle(place / "other").sha256


def test_a_planted_leak_is_refused(place: Path, tmp_path: Path) -> None:
    registry = tmp_path / "registry"
    cheat = r"2 of 60 test samples .* trained on, such as test0000\d of group test-g3"
    with pytest.raises(DataError, match=cheat):
        promote(place, "cheat", registry)
    with pytest.raises(DataError, match=cheat):
        promote(place, "cheat", registry, force=True, reason="it is fine")
    with pytest.raises(DataError, match=r"is not known here.*--trained-on"):  # what it started from
        promote(place, "later", registry)
    with pytest.raises(DataError, match=cheat):
        promote(place, "later", registry, trained_on=[place / "leaky"])
    for name in ("fold", "after-fold"):
        with pytest.raises(DataError, match=r"60 of 60 val samples .* trained on"):
            promote(place, name, registry, split="val")
    assert not registry.exists()
    assert promote(place, "good", registry)["promoted"]
    assert promote(place, "good", tmp_path / "by-val", split="val")["promoted"]


def test_the_test_is_frozen(place: Path, tmp_path: Path) -> None:
    promote(place, "bad", tmp_path / "registry")
    smaller = tmp_path / "smaller"
    shutil.copytree(place / "data", smaller)
    manifest = load_manifest(smaller)
    kept = tuple(shard for shard in manifest.shards if shard.name != "test-000002.tar")
    (smaller / FILE_NAME).write_bytes(manifest.model_copy(update={"shards": kept}).to_bytes())
    with pytest.raises(DataError, match=r"not the one that the current bundle \(entry 1\) was promoted on"):
        run_promote(place / "good", tmp_path / "registry", smaller, Terms(resamples=200), quiet)
    terms = Terms(resamples=200, new_test=True)
    assert run_promote(place / "good", tmp_path / "registry", smaller, terms, quiet)["num_samples"] == 40


def test_a_crash_at_any_point_leaves_the_old_one_current(place: Path, tmp_path: Path,
                                                        monkeypatch: pytest.MonkeyPatch) -> None:
    promote(place, "bad", tmp_path / "start")
    entry = Registry(tmp_path / "start").entry(1)
    new = load_bundle(place / "good")
    wanted = entry.model_copy(update={"number": 2, "parent": 1, "bundle_sha256": new.sha256})
    calls = {"left": 0}

    def failing(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            if not calls["left"]:
                raise KeyboardInterrupt
            calls["left"] -= 1
            return function(*arguments, **named)

        return call

    for point in range(100):
        root = tmp_path / str(point)
        shutil.copytree(tmp_path / "start", root, symlinks=True)
        calls["left"] = point
        with monkeypatch.context() as patch:
            for name in ("fsync", "replace", "rename", "symlink", "open"):
                patch.setattr(os, name, failing(getattr(os, name)))
            try:
                append(Registry(root), wanted, place / "good")
            except KeyboardInterrupt:
                crashed = True
            else:
                crashed = False
        if not crashed:
            break
        became = Registry(root).current_number() == 2  # only the last fsync is left behind the switch
        assert current(root) == (new.sha256 if became else entry.bundle_sha256)
        assert len(run_list(root)["entries"]) == 1 + became
        if not became:
            append(Registry(root), wanted, place / "good")
        assert current(root) == new.sha256
        assert [path.name for path in sorted((root / "bundles").iterdir())] == ["0001", "0002"]
        shutil.rmtree(root)
    assert point > 8
    assert not crashed


def test_promotions_do_not_mix(place: Path, tmp_path: Path) -> None:
    registry = tmp_path / "registry"
    promote(place, "bad", registry)
    before = contents(registry)
    entry = Registry(registry).entry(1)
    with (registry / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ConfigError, match=r"another promotion into .* is under way"):
            promote(place, "good", registry)
    with pytest.raises(ConfigError, match=r"another promotion into .* came in between"):
        append(Registry(registry), entry.model_copy(update={"parent": None}), place / "good")
    with pytest.raises(BundleError, match="changed while it was promoted"):
        append(Registry(registry), entry.model_copy(update={"number": 2, "parent": 1}), place / "good")
    assert current(registry) == entry.bundle_sha256
    assert promote(place, "good", registry)["entry"] == 2
    assert {name: content for name, content in contents(registry).items() if name in before} \
        == before | {"current": "bundles/0002", "lock": b"0002\n"}
    (registry / "bundles/.snapshot").mkdir()  # somebody else's
    kept = contents(registry)
    for recorded in (b"0002\n", b""):  # of an earlier version
        (registry / "lock").write_bytes(recorded)
        for link in ("", "bundles/0001") if recorded else ("",):
            (registry / "current").unlink()
            if link:
                (registry / "current").symlink_to(link)
            with pytest.raises(BundleError, match=r"current (is gone|leads to entry 1), and entry \d was current"):
                promote(place, "other", registry)
            with pytest.raises(BundleError, match="was current"):
                append(Registry(registry), entry, place / "good")
            (registry / "current").unlink(missing_ok=True)
            (registry / "current").symlink_to("bundles/0002")
    assert contents(registry) == kept | {"lock": b""}
    assert promote(place, "bad", registry, margin=1.0)["entry"] == 3
    assert (registry / "bundles/.snapshot").exists()
    assert contents(registry)["lock"] == b"0003\n"
    (registry / "entries/0003.json").write_bytes((registry / "entries/0003.json").read_bytes().replace(b"0", b"1", 1))
    with pytest.raises(BundleError, match=r"0003\.json can not be read"):
        run_rollback(registry, None, "")
    with pytest.raises(ConfigError, match="is no registry"):
        open_registry(place, new=True)
