"""What both command lines say of themselves."""

from __future__ import annotations

import sys

import pytest

from distrib import __version__, cli
from launch.cli import main


@pytest.mark.parametrize("name", ["distrib", "launch"])
@pytest.mark.parametrize(("option", "told"), [("--version", None), ("--help", "Exit codes: 0 done;"),
                                              ("--help", "Documents: README.md and docs/")])
def test_version_exit_codes_and_documents(name: str, option: str, told: str | None, monkeypatch: pytest.MonkeyPatch,
                                          capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", [name, option])
    monkeypatch.setattr("signal.signal", lambda *_: None)
    assert (cli.main() if name == "distrib" else main()) == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert told in said.out if told else said.out == f"{name} {__version__}\n"
