"""A study, as one process sees to it: takes up trials that nobody sees to, trains them, and records their ends.

Any number of processes may share a study. What a trial is, and how far it came, is in the storage and in its run's
folder; who sees to it is in a lease. So each of them may be killed at any time.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Iterator
from typing import Any

import optuna
from optuna.pruners import BasePruner, NopPruner, SuccessiveHalvingPruner
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, Trial, TrialState

from distrib.children.claims import Claims
from distrib.children.cores import divide, usable_cores
from distrib.children.training import CLUSTER, stop_requests
from distrib.durable import replace_file
from distrib.errors import CheckpointError, ConfigError, StorageError, counted, storage_errors
from distrib.tune.draw import SeededByTrial, as_stored, draw
from distrib.tune.folder import StudyDir, settle_study
from distrib.tune.job import Job
from distrib.tune.report import describe_study, experiment_text, show, write_best
from distrib.tune.storage import describe, open_storage, storage_trouble
from distrib.tune.study import Plan
from distrib.tune.training import check_begun

Tell = Callable[[str], None]

POLL_S = 0.2
LOOK_S = 2.0
"""Between looks for trials to take up, while there are none."""
STOP_S = 90.0
"""For trainings to save and end; after that they are killed."""
_IDENTITY = "distrib_study"


def run_tune(plan: Plan, tell: Tell, *, host: str, at_once: int, worker: bool) -> dict[str, Any]:
    """See to a study until all its trials have ended, or with ``worker`` until none is left to be taken up.

    Returns what `tune --json` prints, with "signal": what asked for a stop, or 0. Raises any DistribError.
    """
    folder, storage_name = StudyDir(plan.folder), plan.study.storage
    shown = describe(storage_name)
    with storage_trouble(storage_name, folder.journal), stop_requests() as stop_wanted:
        claims = Claims(host, plan.base.comm.silence_s)
        with _begun(folder), claims.held(folder.lock):
            storage = open_storage(storage_name, folder.journal)
            identity = settle_study(folder, plan, shown)
            study = open_study(plan, storage, identity, shown)
            replace_file(folder.cluster, CLUSTER)
        session = _Session(plan, folder, study, storage, claims, tell, at_once)
        session.run(stop_wanted, worker)
        write_best(study, plan, folder)
        report = describe_study(study, plan, folder, claims)
    _refuse_if_all_failed(report)
    return {**report, "signal": stop_wanted()}


@contextlib.contextmanager
def _begun(folder: StudyDir) -> Iterator[None]:
    """Make a study's folders; those of one that could not be begun are removed. Raises StorageError."""
    made = not folder.root.exists()
    with storage_errors(f"the study's folder {folder.root} could not be written", "nothing was started"):
        for path in (folder.root, folder.experiment(0).parent, folder.log(0).parent):
            path.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        if made and not folder.document.exists():
            shutil.rmtree(folder.root, ignore_errors=True)


def read_report(plan: Plan, *, host: str) -> dict[str, Any]:
    """How a study stands, without training anything. Waits for a sign of the processes elsewhere that see to its
    trials. Raises any DistribError.
    """
    folder, storage_name = StudyDir(plan.folder), plan.study.storage
    if not folder.document.exists():
        raise ConfigError(f"{folder.root} is no study", "there is nothing to show", "start it without --show")
    identity = settle_study(folder, plan, describe(storage_name))
    with storage_trouble(storage_name, folder.journal):
        study = open_study(plan, open_storage(storage_name, folder.journal), identity, describe(storage_name),
                            reads=True)
        claims = Claims(host, plan.base.comm.silence_s)
        claims.make_sure([folder.claim(trial.number) for trial in study.get_trials(deepcopy=False)
                          if trial.state is TrialState.RUNNING])
        return {**describe_study(study, plan, folder, claims), "signal": 0}


def open_study(plan: Plan, storage: BaseStorage, identity: str, shown: str, *, reads: bool = False) -> optuna.Study:
    """The study in its storage, with all its trials, of which the first is the base experiment.

    Raises ConfigError if the storage holds another by that name, StorageError if it has lost this one.
    """
    pruner: BasePruner = NopPruner()
    if plan.study.pruning is not None:
        pruner = SuccessiveHalvingPruner(min_resource=plan.study.pruning.min_epochs,
                                         reduction_factor=plan.study.pruning.reduction)
    if plan.name not in optuna.get_all_study_names(storage):
        if any(StudyDir(plan.folder).runs.glob("*")):
            raise StorageError(f"the {shown} holds no study named {plan.name}, and {plan.folder} has trials of it",
                               "what they tried is not known, so the study was not continued",
                               "restore the storage from a backup, or begin a study in another folder")
        if reads:
            raise ConfigError(f"the study in {plan.folder} has no trials yet", "there is nothing to show",
                              "start it without --show")
    study = optuna.create_study(storage=storage, sampler=SeededByTrial(plan.study), pruner=pruner,
                                study_name=plan.name, direction="maximize", load_if_exists=True)
    if study.user_attrs.get(_IDENTITY, identity) != identity or (
            _IDENTITY not in study.user_attrs and study.get_trials(deepcopy=False)):
        raise ConfigError(f"the {shown} holds another study named {plan.name}", "nothing was started",
                          "give this one another name, or name that one's folder")
    if reads:
        return study
    study.set_user_attr(_IDENTITY, identity)
    for number in range(len(study.get_trials(deepcopy=False)), plan.study.trials):
        study.enqueue_trial(as_stored(plan.study.keys, plan.base_values) if number == 0 else {})
    return study


class _Session:
    """What one process does for a study."""

    def __init__(self, plan: Plan, folder: StudyDir, study: optuna.Study, storage: BaseStorage, claims: Claims,
                 tell: Tell, at_once: int) -> None:
        self._plan, self._folder, self._study, self._storage = plan, folder, study, storage
        self._claims, self._tell = claims, tell
        self._cores = usable_cores()
        self._shares = divide(self._cores, at_once)
        self._jobs: dict[int, Job] = {}
        """By the number of their share of the cores."""
        self._look_at = 0.0

    def run(self, stop_wanted: Callable[[], int], worker: bool) -> None:
        """Until the end, or a request to stop; trainings are ended in order whatever comes."""
        try:
            while not stop_wanted():
                for place, job in list(self._jobs.items()):
                    if self._see_to(job):
                        job.claim.release()
                        del self._jobs[place]
                        self._look_at = 0.0
                if self._take_up() and not self._jobs and (worker or self._all_ended()):
                    return
                time.sleep(POLL_S)
        finally:
            self._stop(stop_wanted)

    def _trials(self) -> list[FrozenTrial]:
        return self._study.get_trials(deepcopy=False)[:self._plan.study.trials]

    def _all_ended(self) -> bool:
        return all(trial.state.is_finished() for trial in self._trials())

    def _take_up(self) -> bool:
        """Give free cores trials: first those that were begun. Whether it looked, and none is left for this process."""
        if len(self._jobs) == len(self._shares) or time.monotonic() < self._look_at:
            return False
        mine = {job.number for job in self._jobs.values()}
        open_trials = [trial for trial in self._trials() if not trial.state.is_finished() and trial.number not in mine]
        for trial in sorted(open_trials, key=lambda trial: (trial.state is TrialState.WAITING, trial.number)):
            lease = self._claims.claim(self._folder.claim(trial.number))
            if lease is None:
                continue
            now = self._storage.get_trial(trial._trial_id)
            if now.state.is_finished():  # by who had it until just now
                lease.release()
                continue
            if now.state is TrialState.WAITING:
                self._storage.set_trial_state_values(trial._trial_id, TrialState.RUNNING)
            place = min(set(range(len(self._shares))) - self._jobs.keys())
            job = Job(Trial(self._study, trial._trial_id), lease, self._shares[place], self._share_cores(place))
            self._jobs[place] = job
            try:
                self._prepare(job)
            except (ConfigError, CheckpointError) as error:
                job.failed = error.one_line()
            return False
        self._look_at = time.monotonic() + LOOK_S
        return all(self._claims.lives(self._folder.claim(trial.number)) for trial in open_trials)

    def _share_cores(self, place: int) -> int:
        return max(1, sum(1 for core in self._cores if set(core) <= set(self._shares[place])))

    def _prepare(self, job: Job) -> None:
        """Settle what a trial is, as whoever had it before would have. Raises CheckpointError, ConfigError,
        StorageError."""
        plan, folder = self._plan, self._folder
        only = plan.base_values if job.number == 0 else None
        values = draw(job.trial, plan.study.keys, only)
        run = folder.run(job.number)
        took_up = run.experiment.exists()
        experiment = plan.experiment(values)
        if took_up:
            check_begun(run, experiment)
        job.prepare(experiment, run, len(plan.manifest.samples("train")))
        if not took_up:
            with storage_errors("a trial's experiment could not be written", "the study stopped"):
                replace_file(folder.experiment(job.number), experiment_text(plan, values))
        told = ", ".join(f"{name}={show(value)}" for name, value in values.items())
        what = "the base experiment" if job.number == 0 else told
        self._tell(f"trial {job.number} {'goes on' if took_up else 'begins'}: {what}")

    def _see_to(self, job: Job) -> bool:
        """Advance a trial. Whether this process is done with it. Raises StorageError, OSError."""
        if job.failed:
            return self._record(job, TrialState.FAIL, job.failed)
        if job.lost_claim():  # this process was taken for dead, and another goes on
            self._tell(f"trial {job.number} was taken over by another process")
            job.abandoned = True
            job.ask_to_stop()
        if job.abandoned or job.pruned:
            return job.has_ended()
        ended = job.ended(self._folder.log(job.number))
        if self._report(job, may_go_on=ended is None or ended.how == "again"):
            return job.has_ended()
        if ended is None:
            if not job.is_training and not self._claims.is_held(job.run):
                job.start(self._folder.experiment(job.number), self._folder.log(job.number), self._folder.cluster)
            return False
        if ended.how == "again":
            self._tell(f"trial {job.number} was {ended.message}, and goes on from step {job.checkpoint()}")
            return False
        if ended.how == "complete":
            return self._record(job, TrialState.COMPLETE, "")
        if ended.how == "diverged":
            job.trial.set_user_attr("diverged", True)
            # To the sampler it is worse than all others; a failure would be no reason not to try the like again.
            return self._record(job, TrialState.PRUNED, ended.message)
        return self._record(job, TrialState.FAIL, ended.message)

    def _report(self, job: Job, *, may_go_on: bool) -> bool:
        """Tell the pruner of new validations, and whether it ended the trial: never the base, nor at the very end."""
        metric = self._plan.base.evaluate.metric
        for seen in job.validations():
            job.trial.report(seen.score, seen.epochs)
            self._tell(f"trial {job.number} after {seen.epochs} of {counted(job.total_epochs, 'epoch')}: {metric} "
                       f"{seen.score:.4f}")
            if job.trial.should_prune() and job.number and may_go_on and seen.epochs < job.total_epochs:
                self._record(job, TrialState.PRUNED, "")  # first of all, so that nobody goes on with it
                job.pruned = True
                job.ask_to_stop()
                return True
        return False

    def _record(self, job: Job, state: TrialState, message: str) -> bool:
        if message:
            job.trial.set_user_attr("message", message)
        score = job.score() if state is TrialState.COMPLETE else None
        self._study.tell(job.number, score, state)
        if score is not None:
            self._tell(f"trial {job.number} is complete: {self._plan.base.evaluate.metric} {score:.4f}")
            write_best(self._study, self._plan, self._folder)
        else:
            what = "diverged" if job.trial.user_attrs.get("diverged") else \
                "is pruned" if state is TrialState.PRUNED else "failed"
            self._tell(f"trial {job.number} {what}" + (f": {message}" if message else ""))
        return True

    def _stop(self, stop_wanted: Callable[[], int]) -> None:
        """Have all trainings save and end, and let go of their trials."""
        for job in self._jobs.values():
            job.ask_to_stop()
        if any(not job.has_ended() for job in self._jobs.values()):
            self._tell("trials save and end; start the study again to go on")
        deadline = time.monotonic() + STOP_S
        while any(not job.has_ended() for job in self._jobs.values()):
            if time.monotonic() > deadline or stop_wanted() < 0:
                for job in self._jobs.values():
                    job.kill()
            time.sleep(POLL_S / 4)
        for job in self._jobs.values():
            job.claim.release()
        self._jobs.clear()


def _refuse_if_all_failed(report: dict[str, Any]) -> None:
    """Raises ConfigError."""
    ends = {row["state"] for row in report["trials"]}
    if report["finished"] and report["best"] is None and ends <= {"failed", "diverged"}:
        first = report["trials"][0]
        number = len(report["trials"])
        all_of = f"all {number} trials" if number > 1 else "the only trial"
        raise ConfigError(f"{all_of} failed, the base experiment so: {first['message']}",
                          "there is no best one", "correct the experiment, and begin a study in another folder")
