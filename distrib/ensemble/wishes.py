"""What `distrib ensemble` is asked for, checked before anything slow is imported or done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from distrib.bundle import ExactName, ReducedName
from distrib.config import EvaluateConfig, load_run_experiment
from distrib.errors import ConfigError
from distrib.export.wishes import check_bundle_wishes
from distrib.rundir import RunDir
from distrib.views import Tta
from distrib.world import World

Combine = Literal["mean", "weights", "rank"]
Select = Literal["all", "greedy"]
Calibrate = Literal["temperature", "none"]

_NOTHING = "nothing was combined"
_Name = TypeVar("_Name", bound=str)


@dataclass(frozen=True)
class Wishes:
    """How members become one bundle."""

    out: Path
    exact: Sequence[ExactName]
    reduced: Sequence[ReducedName] = ()
    combine: Combine = "mean"
    select: Select = "all"
    tta: Tta = "none"
    calibrate: Calibrate = "temperature"
    metric: str | None = None
    """What decides; None: the members' evaluate.metric."""
    tolerance: float = 1e-3
    num_samples: int = 64
    max_drop: float = 0.005
    calibration: int = 300

    @property
    def needs_held_out(self) -> str | None:
        """The option that needs samples which no member was trained on."""
        if self.select == "greedy":
            return "--select greedy"
        return f"--combine {self.combine}" if self.combine != "mean" else None


def make_wishes(out: Path, formats: Sequence[str], *, split: str, combine: str, select: str, tta: str, calibrate: str,
                metric: str | None, tolerance: float, num_samples: int, max_drop: float, calibration: int) -> Wishes:
    """Raises BundleError, ConfigError or MissingPartError for what can not be fulfilled."""
    if split == "test":
        raise ConfigError("--split test: an ensemble is never chosen on the test split",
                          f"its test would be none any more, so the split was not read and {_NOTHING}",
                          "choose on val, and judge the bundle once with `distrib evaluate BUNDLE --split test`")
    if split != "val":
        raise ConfigError(f"--split {split!r} is no split to choose on", _NOTHING,
                          "leave it out: the validation split decides, which no member was trained on")
    metrics = get_args(EvaluateConfig.model_fields["metric"].annotation)
    exact, reduced = check_bundle_wishes(out, formats, tolerance, num_samples, max_drop, calibration)
    return Wishes(
        out, exact, reduced, _one_of("--combine", combine, get_args(Combine)),
        _one_of("--select", select, get_args(Select)), _one_of("--tta", tta, get_args(Tta)),
        _one_of("--calibrate", calibrate, get_args(Calibrate)),
        None if metric is None else _one_of("--metric", metric, metrics), tolerance, num_samples, max_drop, calibration)


def check_out_of_fold(wishes: Wishes) -> None:
    """Of members that leave no sample which none of them was trained on. Raises ConfigError for what needs such."""
    if wishes.needs_held_out is not None:
        raise ConfigError(f"{wishes.needs_held_out} needs samples that no member was trained on, and these folds leave "
                          "none", _NOTHING,
                          "take the mean of all folds, or keep the validation split from them with "
                          "--set data.fold_over=train")
    if wishes.reduced:
        raise ConfigError(f"{', '.join(wishes.reduced)} must be judged on samples that no member was trained on, and "
                          "these folds leave none", _NOTHING,
                          "leave it out, or keep the validation split from the folds with --set data.fold_over=train")


def check_classes(wishes: Wishes, num_classes: int) -> None:
    """Raises ConfigError for what needs two classes."""
    if wishes.combine == "rank" and num_classes != 2:
        raise ConfigError(f"--combine rank, and there are {num_classes} classes", _NOTHING,
                          "rank means are for two classes, where one number ranks the samples; take another")


def check_members(sources: Sequence[Path], folds: int | None, run: Path | None, overrides: Sequence[str],
                  world: World) -> None:
    """Raises CheckpointError or ConfigError unless these are runs to combine, or one experiment to train in folds."""
    if world.size > 1:
        raise ConfigError(
            f"`distrib ensemble` was started as {world.size} ranks", _NOTHING,
            "start it once, without a launcher; to train members over several ranks, train them one by one with "
            "`launch run ... -- distrib train EXPERIMENT --set data.folds=5 --set data.fold=0 --run DIR`, then "
            "`distrib ensemble DIR...`")
    if folds is None:
        for option, value in (("--run", run), ("--set", overrides)):
            if value:
                raise ConfigError(f"{option} is for --folds", _NOTHING, "leave it out, or give --folds")
        if len(sources) < 2:
            raise ConfigError(f"{sources[0]} alone is no ensemble", _NOTHING,
                              "name two runs or more, or train some with --folds")
        for source in sources:
            load_run_experiment(RunDir(source))
    elif folds < 2:
        raise ConfigError(f"--folds {folds} is below 2", "nothing was trained", "give at least 2")
    elif len(sources) != 1:
        raise ConfigError(f"--folds {folds} and {len(sources)} arguments", "nothing was trained",
                          "name one experiment")


def _one_of(option: str, value: str, known: Sequence[_Name]) -> Any:
    if value not in known:
        raise ConfigError(f"{option} {value!r} is unknown", _NOTHING, f"choose one of {', '.join(known)}")
    return value
