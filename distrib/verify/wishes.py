"""What `distrib verify` is asked for, checked before anything slow is imported or done."""

from __future__ import annotations

from pathlib import Path

from distrib.config import load_run_experiment
from distrib.errors import ConfigError
from distrib.rundir import RunDir
from distrib.world import World


def check_wishes(run: Path, other: Path | None, replay: bool, steps: int | None, keep: Path | None, data: Path | None,
                 world: World) -> None:
    """Raises ConfigError or CheckpointError for what can not be compared."""
    if replay == (other is not None):
        raise ConfigError("both RUN_B and --replay are given" if replay else f"{run} is compared with nothing",
                          "nothing was compared", "give another run, or --replay")
    if not replay:
        for option, value in (("--steps", steps), ("--keep", keep), ("--data", data)):
            if value is not None:
                raise ConfigError(f"{option} is for --replay", "nothing was compared", "leave it out")
    if steps is not None and steps < 1:
        raise ConfigError(f"--steps {steps} is not above 0", "nothing was compared", "give at least 1")
    if keep is not None and (keep.is_symlink() or (keep.exists() and (not keep.is_dir() or any(keep.iterdir())))):
        raise ConfigError(f"{keep} exists already", "nothing was replayed; it is as it was",
                          "choose another --keep, or remove it first")
    if world.size > 1:
        raise ConfigError(f"`distrib verify` was started as {world.size} ranks", "nothing was compared",
                          "start it once, without a launcher")
    load_run_experiment(RunDir(run))
    if other is not None:
        load_run_experiment(RunDir(other))
        if run.samefile(other):
            raise ConfigError(f"{run} and {other} are the same folder", "nothing was compared",
                              "name two runs, or give --replay")
