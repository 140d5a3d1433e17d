"""What else decides the last bits of a model: processor, libraries, threads. Recorded at every start."""

from __future__ import annotations

import importlib.metadata
import json
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from distrib import __version__
from distrib.code import code_record
from distrib.errors import CheckpointError, storage_errors
from distrib.rundir import RunDir
from distrib.train.processor import read_processor
from distrib.world import World

_PACKAGES = ("torch", "numpy", "opencv-python-headless", "simplejpeg", "safetensors")
DECISIVE = ("processor", "instruction_sets", "torch_capability", "packages", "threads")
"""Which of them decide last bits."""


def describe_environment(world: World, dataset_sha256: str, parts: Sequence[str] = ()) -> dict[str, Any]:
    """Plain JSON values about this process; local. ``parts`` are optional packages that this run computes with."""
    processor = read_processor()
    return {
        "distrib": __version__,
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in (*_PACKAGES, *parts)},
        "processor": processor.name,
        "torch_capability": torch.backends.cpu.get_cpu_capability(),
        "instruction_sets": sorted(f for f in processor.flags if f.startswith(("avx512", "amx", "avx2"))),
        "threads": torch.get_num_threads(),
        "world_size": world.size,
        "host": world.host,
        "dataset_sha256": dataset_sha256,
        "code": code_record(),
    }


def record_environment(run: RunDir, now: dict[str, Any], step: int) -> list[str]:
    """Append to the run's record; returns what differs from its first start in ways that change last bits."""
    with storage_errors("the environment could not be recorded", "nothing was started"):
        first = now
        if run.environment.exists():
            lines = run.environment.read_bytes().splitlines()
            first = _parsed(run.environment, lines[0]) if lines else now
        with run.environment.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **now}) + "\n")
    return [f"{name}: {first.get(name)} then, {now[name]} now" for name in DECISIVE if first.get(name) != now[name]]


def _parsed(path: Path, line: bytes) -> dict[str, Any]:
    try:
        return dict(json.loads(line))
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged: its first line is no JSON object", "the run was not continued",
                              "restore or remove it; it only serves to warn of other last bits") from error


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
