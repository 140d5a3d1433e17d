"""What `distrib backends` answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from distrib.comm.table import BACKENDS, backend_module
from distrib.errors import ConfigError, MissingPartError


def run_backends(build: str | None, tell: Callable[[str], None]) -> list[dict[str, Any]]:
    """Every backend of the table: {"backend", "available", "version", "missing"}; one is built first if asked for.

    Raises ConfigError for a name that can not be built, MissingPartError if what was built can not be used.
    """
    if build is not None:
        _build(build, tell)
    rows = []
    for name in BACKENDS:
        module = backend_module(name)
        lack = module.missing()
        rows.append({"backend": name, "available": lack is None, "version": module.version() if lack is None else None,
                     "missing": lack})
    return rows


def _build(name: str, tell: Callable[[str], None]) -> None:
    buildable = [other for other in BACKENDS if hasattr(backend_module(other), "build")]
    if name not in buildable:
        what = "has nothing to build" if name in BACKENDS else "is unknown"
        raise ConfigError(f"--build {name}: this backend {what}", "nothing was built",
                          f"choose one of {', '.join(buildable)}; `distrib backends` lists what is missing")
    module = backend_module(name)
    module.build(tell)
    if (lack := module.missing()) is not None:
        raise MissingPartError(f"{name} was built, but can not be used: {lack}")
