from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from distrib.comm import horovod, horovod_build
from distrib.comm.group import Group
from distrib.comm.show import run_backends
from distrib.comm.table import BACKENDS, backend_module
from distrib.errors import ConfigError, MissingPartError, WorldError
from distrib.world import World


def test_every_backend_says_what_it_lacks_or_its_version() -> None:
    rows = {row["backend"]: row for row in run_backends(None, lambda _: None)}
    assert list(rows) == list(BACKENDS)
    assert rows["gloo"]["available"]
    for row in rows.values():
        assert (row["version"] is None) == (row["missing"] is not None) == (not row["available"])
        assert row["missing"] is None or "\n" not in row["missing"]


def test_the_verb_lists_them_as_json() -> None:
    done = subprocess.run([sys.executable, "-m", "distrib", "backends", "--json"], capture_output=True, text=True,
                          check=True, timeout=120)
    assert [row["backend"] for row in json.loads(done.stdout)] == list(BACKENDS)


@pytest.mark.parametrize(("name", "why"), [("gloo", "has nothing to build"), ("smoke", "is unknown")])
def test_only_what_can_be_built_is_built(name: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why) as caught:
        run_backends(name, lambda _: None)
    assert "horovod" in caught.value.remedy


def test_a_missing_backend_names_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert horovod.missing() == "Horovod is not installed; build it with `distrib backends --build horovod`"
    with pytest.raises(ConfigError, match="distrib backends --build horovod"):
        Group(World(), "horovod")


def test_a_build_for_another_torch_is_stale(monkeypatch: pytest.MonkeyPatch) -> None:
    class Installed:
        url = "file:///cache/horovod0.28.1-torch2.13.0%2Bcpu-0123abcd/horovod-0.28.1-cp311-cp311-linux_x86_64.whl"

        def read_text(self, name: str) -> str:
            return json.dumps({"url": self.url})

    monkeypatch.setattr("importlib.metadata.distribution", lambda _: Installed())
    monkeypatch.setattr("importlib.metadata.version", lambda _: "2.13.0+cpu")
    assert not horovod._stale()
    monkeypatch.setattr("importlib.metadata.version", lambda _: "2.14.0+cpu")
    assert horovod._stale()


def test_the_key_of_a_wheel_holds_all_it_depends_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(horovod_build, "first_line", lambda *command: f"{command[0]} 1")
    keys = {horovod_build._key()}
    monkeypatch.setattr(horovod_build, "first_line", lambda *command: f"{command[0]} 2")
    keys.add(horovod_build._key())
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    keys.add(horovod_build._key())
    monkeypatch.setattr("importlib.metadata.version", lambda _: "9.9")
    keys.add(horovod_build._key())
    assert len(keys) == 4
    assert all("/" not in key for key in keys)


def test_tools_that_are_missing_are_named_before_anything_is_built(monkeypatch: pytest.MonkeyPatch,
                                                                   tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingPartError, match="apt-get install g") as caught:
        horovod_build.build(lambda _: None)
    assert "libopenmpi-dev" in caught.value.remedy
    assert not list(tmp_path.iterdir())


def test_a_wheel_is_built_once_whole_or_not_at_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    commands: list[list[str]] = []

    def run(command: list[str], environment: dict[str, str], failure: str) -> None:
        commands.append(command)
        if "wheel" in command:
            made = Path(command[command.index("--wheel-dir") + 1])
            made.mkdir()
            if len(commands) == 1:
                (made / "half").touch()
                raise MissingPartError(failure)
            assert Path(environment["CXX"]).read_text().endswith("-std=gnu++20\n")
            (made / "horovod-0.28.1-any.whl").touch()

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(horovod_build, "run_tool", run)
    monkeypatch.setattr(horovod_build, "_check_tools", lambda: None)
    monkeypatch.setattr(horovod_build, "first_line", lambda *command: "1")
    with pytest.raises(MissingPartError, match="could not be built"):
        horovod_build.build(lambda _: None)
    assert [path.suffix for path in (tmp_path / "distrib" / "wheels").iterdir()] == [".lock"]
    for _ in range(2):
        horovod_build.build(lambda _: None)
    assert [command[3] for command in commands] == ["wheel", "wheel", "install", "install"]


def test_mpi_is_not_asked_under_another_launcher() -> None:
    with pytest.raises(WorldError, match="Slurm started this rank"):
        backend_module("mpi").prepare(World(0, 2, launcher="Slurm"))
