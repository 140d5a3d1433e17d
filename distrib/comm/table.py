"""The table of communication backends: a name to a function that makes torch able to use it."""

from __future__ import annotations

import importlib
from collections.abc import Callable

from distrib.errors import ConfigError

# name -> module:function taking the World, preparing this process, and returning c10d's name for it.
BACKENDS = {
    "gloo": "distrib.comm.gloo:prepare",
}


def choose_backend(name: str) -> str:
    """The backend that ``auto`` stands for, or ``name`` itself. Raises ConfigError for an unknown one."""
    chosen = "gloo" if name == "auto" else name
    if chosen not in BACKENDS:
        raise ConfigError(f"comm.backend = {name!r} is unknown", "nothing was started",
                          f"choose one of auto, {', '.join(BACKENDS)}")
    return chosen


def backend_function(name: str) -> Callable[..., str]:
    """Import the function behind a name of the table."""
    module, _, attribute = BACKENDS[name].partition(":")
    function: Callable[..., str] = getattr(importlib.import_module(module), attribute)
    return function
