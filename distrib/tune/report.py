"""What a study tells: a leaderboard, importances, and the best trial's experiment."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

from optuna import Study as OptunaStudy
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.trial import FrozenTrial, TrialState

from distrib.children.claims import Claims
from distrib.documents import to_yaml, with_values
from distrib.durable import replace_file
from distrib.errors import StorageError, printable, storage_errors
from distrib.tune.draw import as_drawn
from distrib.tune.folder import StudyDir
from distrib.tune.study import Plan

SHOWN = 10
LEAST_FOR_IMPORTANCE = 4
"""Complete trials below which importances would say nothing."""
BEST_PART = 0.25
"""Of the complete trials, those that count as the best; of few, a tenth would be none."""
STATES = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed",
          TrialState.RUNNING: "running", TrialState.WAITING: "waiting"}
STOPPED = "stopped"
"""State of a trial that was begun, and that no living process sees to: it goes on when one takes it up."""


def describe_trial(trial: FrozenTrial, plan: Plan, folder: StudyDir, claims: Claims) -> dict[str, Any]:
    """One trial, as `tune --json` prints it. Raises OSError."""
    state = "diverged" if trial.user_attrs.get("diverged") else STATES[trial.state]
    if trial.state is TrialState.RUNNING and not claims.is_held(folder.claim(trial.number)):
        state = STOPPED
    return {
        "number": trial.number,
        "state": state,
        "score": trial.value if trial.state is TrialState.COMPLETE else None,
        "best_seen": max(trial.intermediate_values.values(), default=None),
        "epochs": trial.last_step,
        "values": as_drawn(plan.study.keys, trial.params),
        "run": str(folder.run(trial.number).root),
        "message": trial.user_attrs.get("message"),
    }


def describe_study(study: OptunaStudy, plan: Plan, folder: StudyDir, claims: Claims) -> dict[str, Any]:
    """What `tune --json` prints. Raises OSError."""
    trials = study.get_trials(deepcopy=False)[:plan.study.trials]
    _check_scores(trials, folder)
    best = best_trial(trials)
    rows = [describe_trial(trial, plan, folder, claims) for trial in trials]
    return {
        "study": str(folder.root),
        "metric": plan.base.evaluate.metric,
        "finished": all(trial.state.is_finished() for trial in trials),
        "base_score": rows[0]["score"] if rows else None,
        "best": rows[best.number] if best is not None else None,
        "best_experiment": str(folder.best) if best is not None else None,
        "importances": importances(study, trials),
        "trials": rows,
    }


def _check_scores(trials: Sequence[FrozenTrial], folder: StudyDir) -> None:
    """Raises StorageError for a score that is none: no training has one."""
    for trial in trials:
        scores = [*(trial.values or ()), *trial.intermediate_values.values()]
        if not all(isinstance(score, int | float) and math.isfinite(score) for score in scores):
            raise StorageError(f"the storage of {folder.root} is damaged: trial {trial.number} has a score that is no "
                               "finite number", "it can not be told which trial is best",
                               "restore it from a backup, or begin a study in another folder")


def best_trial(trials: Sequence[FrozenTrial]) -> FrozenTrial | None:
    """The complete trial with the highest score; of equals the first."""
    complete = [trial for trial in trials if trial.state is TrialState.COMPLETE]
    return max(complete, key=lambda trial: (trial.value, -trial.number), default=None)


def importances(study: OptunaStudy, trials: Sequence[FrozenTrial]) -> dict[str, float]:
    """How much each key mattered for being among the best complete trials, by PED-ANOVA; they add up to 1.

    Empty with too few complete trials, or if all are as good as the best. Source: Watanabe, Bansal, Hutter, IJCAI 2023.
    """
    complete = [trial for trial in trials if trial.state is TrialState.COMPLETE]
    scores = sorted((trial.value or 0.0 for trial in complete), reverse=True)
    if len(scores) < LEAST_FOR_IMPORTANCE or scores[-1] == scores[math.ceil(BEST_PART * len(scores)) - 1]:
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of keys that few trials vary
        found = get_param_importances(study, evaluator=PedAnovaImportanceEvaluator(target_quantile=BEST_PART))
    return {name: round(value, 4) for name, value in found.items()}


def write_best(study: OptunaStudy, plan: Plan, folder: StudyDir) -> None:
    """Write the best trial's experiment, if there is one. Raises StorageError."""
    trials = study.get_trials(deepcopy=False)[:plan.study.trials]
    best = best_trial(trials)
    if best is None:
        return
    base = trials[0].value if trials[0].state is TrialState.COMPLETE else None
    beside = f"; the base experiment's is {base:.6g}" if base is not None else ""
    text = (f"# Trial {best.number} of the study {plan.name}: {plan.base.evaluate.metric} "
            f"{best.value:.6g} on the validation split{beside}.\n")
    with storage_errors(f"{folder.best} could not be written", "the study goes on when it is started again"):
        replace_file(folder.best, text.encode() + experiment_text(plan, as_drawn(plan.study.keys, best.params)))


def experiment_text(plan: Plan, values: dict[str, Any]) -> bytes:
    """A trial's experiment as YAML: the base's keys, with these values."""
    return to_yaml(with_values(plan.document, values))


def report_lines(report: dict[str, Any]) -> Iterator[str]:
    """The leaderboard and the importances, for a terminal."""
    order = sorted(report["trials"], key=lambda row: (row["score"] is None, -(row["score"] or 0.0),
                                                      -(row["best_seen"] or float("-inf"))))
    shown = [row for row in order if row["state"] != "waiting"][:SHOWN]
    table = [("trial", "state", report["metric"], "epochs", "values")]
    for row in shown:
        score = row["score"] if row["score"] is not None else row["best_seen"]
        values = "  ".join(f"{name}={show(value)}" for name, value in row["values"].items())
        base = "(base) " if row["number"] == 0 else ""
        table.append((str(row["number"]), row["state"], "" if score is None else f"{score:.4f}",
                      "" if row["epochs"] is None else str(row["epochs"]), base + (row["message"] or values)))
    widths = [max(len(line[column]) for line in table) for column in range(4)]
    for line in table:
        yield printable("  ".join((*(cell.ljust(width) for cell, width in zip(line, widths, strict=False)), line[4])))
    if stopped := [str(row["number"]) for row in report["trials"] if row["state"] == STOPPED]:
        yield (f"stopped: trial {', '.join(stopped[:SHOWN])}{' ...' if stopped[SHOWN:] else ''}; nobody trains it now, "
               "and it goes on when the study is started again")
    if report["importances"]:
        yield "importances: " + ", ".join(f"{name} {value:.2f}" for name, value in report["importances"].items())
    if (best := report["best"]) is not None:
        gain = ""
        if report["base_score"] is not None:
            gain = f", {best['score'] - report['base_score']:+.4f} over the base experiment"
        yield printable(f"best: trial {best['number']}, {report['metric']} {best['score']:.4f} on the validation "
                        f"split{gain}; {report['best_experiment']}")
        if len(report["trials"]) > 1:
            yield ("the best of many was partly lucky on these samples: judge it on the test split, once, before you "
                   "believe the gain")


def show(value: Any) -> str:
    """A value as briefly as it reads."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value)
