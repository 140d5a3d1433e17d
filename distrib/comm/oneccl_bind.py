"""oneccl-bind-pt: Intel's torch-ccl, whose name in c10d is ccl, where a site has it."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os

from distrib.errors import ConfigError
from distrib.world import World

PACKAGE = "oneccl_bindings_for_pytorch"


def missing() -> str | None:
    """What is missing, and the remedy; None if nothing is."""
    if importlib.util.find_spec(PACKAGE) is None:
        return (f"{PACKAGE} is not installed; install oneccl-bind-pt as built for torch "
                f"{importlib.metadata.version('torch')}, or choose another backend")
    try:
        importlib.import_module(PACKAGE)
    except (ImportError, OSError) as error:
        return f"{PACKAGE} does not load ({str(error).splitlines()[0]}); install the one built for this torch"
    return None


def version() -> str:
    """Of the installed package."""
    return importlib.metadata.version("oneccl_bind_pt")


def prepare(world: World) -> str:
    """Import it, which registers it with c10d, and tell oneCCL who this rank is; local."""
    os.environ.setdefault("CCL_PROCESS_LAUNCHER", "none")
    os.environ.setdefault("CCL_LOCAL_RANK", str(world.local_rank))
    os.environ.setdefault("CCL_LOCAL_SIZE", str(world.local_size))
    if world.comm_cpus:
        os.environ.setdefault("CCL_WORKER_COUNT", str(len(world.comm_cpus)))
        os.environ.setdefault("CCL_WORKER_AFFINITY", ",".join(map(str, world.comm_cpus)))
    try:
        importlib.import_module(PACKAGE)
    except (ImportError, OSError) as error:
        raise ConfigError(f"{PACKAGE} does not load: {error}", "nothing was started",
                          "install the one built for this torch") from error
    return "ccl"
