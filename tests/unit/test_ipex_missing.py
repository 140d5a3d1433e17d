"""What is said where IPEX can not be used; that it trains is tested by tests/ipex, where it can."""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from distrib.comm.group import Group
from distrib.errors import MissingPartError
from distrib.train import ipex
from distrib.world import World

OURS = torch.__version__.rpartition(".")[0] + ".0"



def missing(package: str) -> str:
    raise importlib.metadata.PackageNotFoundError(package)


def fails(error: BaseException) -> Callable[[str], Any]:
    def import_module(name: str) -> Any:
        raise error

    return import_module


@pytest.mark.parametrize(("version", "module", "says"), [
    (missing, None, "intel-extension-for-pytorch is not installed"),
    (lambda _: "1.13.0", None, f"intel-extension-for-pytorch 1.13.0 does not fit torch {torch.__version__}"),
    (lambda _: OURS, fails(OSError("libx.so: undefined\n symbol")), "can not be imported (libx.so: undefined symbol)"),
    (lambda _: OURS, fails(SystemExit("needs AVX2")), "can not be imported (needs AVX2)"),
], ids=["missing", "another torch", "broken", "ends the program"])
def test_ipex_that_can_not_be_used_is_named_with_the_remedy(
        monkeypatch: pytest.MonkeyPatch, version: Callable[[str], str], module: Callable[[str], Any] | None,
        says: str) -> None:
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters())
    with Group(World(host="here")) as group:
        monkeypatch.setattr(importlib.metadata, "version", version)
        if module is not None:
            monkeypatch.setattr(importlib, "import_module", module)
        with pytest.raises(MissingPartError) as caught:
            ipex.optimize(model, optimizer, group)
    assert caught.value.fact.startswith("train.ipex = true, but on rank 0 of here intel-extension-for-pytorch ")
    assert says in caught.value.fact
    assert "pip install 'torch==2.8.*' intel-extension-for-pytorch==2.8.0" in caught.value.remedy
    assert caught.value.exit_code == 2
