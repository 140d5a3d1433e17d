"""What `distrib export` is asked for, checked before anything slow is imported or done."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from distrib.bundle import ExactName, ReducedName
from distrib.config import load_run_experiment
from distrib.errors import BundleError, ConfigError
from distrib.export.table import check_packages, parse_formats
from distrib.rundir import RunDir


def check_wishes(run: Path, out: Path, formats: Sequence[str], tolerance: float, num_samples: int, max_drop: float,
                 calibration: int) -> tuple[list[ExactName], list[ReducedName]]:
    """The formats to write, exact and reduced ones.

    Raises BundleError, CheckpointError, ConfigError or MissingPartError for what can not be fulfilled.
    """
    names = check_bundle_wishes(out, formats, tolerance, num_samples, max_drop, calibration)
    load_run_experiment(RunDir(run))
    return names


def check_bundle_wishes(out: Path, formats: Sequence[str], tolerance: float, num_samples: int, max_drop: float,
                        calibration: int) -> tuple[list[ExactName], list[ReducedName]]:
    """`check_wishes` of any subject."""
    exact, reduced = parse_formats(formats)
    if not 0 < tolerance < 1 or num_samples < 1:  # also of nan, which no difference exceeds
        raise ConfigError(f"--tolerance {tolerance:g} and --samples {num_samples} check nothing",
                          "nothing was exported", "give a tolerance between 0 and 1, and at least one sample")
    if not 0 <= max_drop < math.inf or calibration < 1:
        raise ConfigError(f"--max-drop {max_drop:g} and --calibration {calibration} check nothing",
                          "nothing was exported", "give a drop of at least 0, and at least one image to calibrate with")
    if out.is_symlink() or (out.exists() and (not out.is_dir() or any(out.iterdir()))):
        raise BundleError(f"{out} exists already", "nothing was written; it is as it was",
                          "choose another --out, or remove it first")
    check_packages([*exact, *reduced])
    return exact, reduced
