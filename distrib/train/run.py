"""One rank of a training run, from the experiment file to the result."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch
from torch import nn

from distrib.checkpoint import CheckpointWriter, newest_checkpoint
from distrib.comm.group import Group
from distrib.config import Experiment
from distrib.data.manifest import DatasetRecord, Manifest, class_counts
from distrib.data.order import carried_lanes
from distrib.data.shards import ShardReader
from distrib.data.stream import Stream
from distrib.durable import replace_file
from distrib.errors import CheckpointError, storage_errors
from distrib.models.weights import set_training, weights_sha256
from distrib.rundir import RunDir
from distrib.train import ipex
from distrib.train.agree import agree_on_experiment, warn_of_other_processors
from distrib.train.build import starting_model, training_order, training_transform, validator
from distrib.train.environment import describe_environment, record_environment
from distrib.train.ledger import Ledger
from distrib.train.log import RunLog
from distrib.train.loop import Best, Trained, Trainer, total_steps
from distrib.train.optimise import (
    MovingAverage,
    build_optimizer,
    build_outer_optimizer,
    class_weights,
    load_optimizer_tensors,
)
from distrib.train.paces import build_pace
from distrib.train.reduction import Reduction
from distrib.train.reductions import build_reduction
from distrib.train.resume import broadcast_tensors
from distrib.train.settle import Settled
from distrib.train.watch import build_watch
from distrib.world import World

Tell = Callable[[str], None]
"""Shows the user one line; does nothing on ranks other than 0."""


def run_train(settled: Settled, world: World, tell: Tell) -> dict[str, Any]:
    """Train, or go on where the run stopped. Collective over the world's ranks.

    Returns what `train --json` prints; the same on all ranks. Raises any DistribError.
    """
    run, comm = settled.run, settled.experiment.comm
    torch.set_num_threads(settled.experiment.train.threads)
    _advise_threads(settled.experiment, tell)
    with (
        Group(world, comm.backend, comm.timeout_s) as group,
        _run_lock(run) if world.is_first else contextlib.nullcontext(),
        _stop_requests() as stop_wanted,
    ):
        if group.size > 1:
            tell(f"communication: {group.backend} ({group.choice.why})")
        experiment = agree_on_experiment(settled, group)
        return _train(run, experiment, settled.manifest, group, stop_wanted, tell)


def _advise_threads(experiment: Experiment, tell: Tell) -> None:
    threads, cores = experiment.train.threads, len(os.sched_getaffinity(0))
    if cores > threads:
        tell(f"note: this rank may use {cores} cores and computes with train.threads = {threads}; more ranks use the "
             f"others with the same result (up to {experiment.train.lanes}; `launch run` starts them), more threads "
             "do with other last bits")


def _begin(run: RunDir, experiment: Experiment, manifest: Manifest, tell: Tell) -> None:
    """Write what the run is, unless it goes on; only on rank 0, when all is known to fit together."""
    if run.experiment.exists():
        return
    with storage_errors(f"the run folder {run.root} could not be written", "nothing was started"):
        record = DatasetRecord(classes=manifest.classes, dataset_sha256=manifest.sha256)
        replace_file(run.dataset, record.to_bytes())
        replace_file(run.experiment, experiment.to_bytes())
    train = experiment.train
    tell(f"run {run.root}: {experiment.model.name} in {train.precision}, {train.lanes} lanes of "
         f"{train.lane_batch} images a step, {train.reduction} sums")


@dataclass
class _State:
    """What training changes, and a checkpoint holds."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    """With local steps, the outer one."""
    average: MovingAverage | None
    reduction: Reduction | None
    """None with local steps: a round carries no exponents to the next."""
    best: Best
    step: int = 0


def _fresh_state(experiment: Experiment, num_classes: int, group: Group, tell: Tell) -> _State:
    train = experiment.train
    model = starting_model(experiment, num_classes, tell)
    local = train.local_steps > 1
    optimizer = build_outer_optimizer(model, train) if local else build_optimizer(model, train)
    if train.ipex:  # before anything keeps a tensor of the model's: parameters get new storage
        ipex.optimize(model, optimizer, group)
    # Ranks on different processors may have drawn different last bits.
    group.broadcast(model.state_dict().values())
    average = MovingAverage(model, train.ema_decay) if train.ema_decay is not None else None
    reduction = None if local else build_reduction(train, group, model, experiment.seed)
    return _State(model, optimizer, average, reduction, Best())


def _restore(state: _State, run: RunDir, group: Group, tell: Tell) -> None:
    """Bring every rank to the newest whole checkpoint, which rank 0 alone reads. Collective."""
    found = newest_checkpoint(run, tell) if group.world.is_first else None
    header = json.dumps([found.step, found.progress] if found else None).encode() if group.world.is_first else None
    received = json.loads(group.broadcast_bytes(header))
    if received is None:
        return
    state.step, progress = received
    weights = broadcast_tensors(group, found.model if found else None)
    try:
        state.model.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(f"the checkpoint does not fit the model: {str(error).splitlines()[-1].strip()}",
                              "the run was not continued", "use the code that the run was begun with") from error
    load_optimizer_tensors(state.model, state.optimizer, broadcast_tensors(group, found.optimizer if found else None))
    if state.average is not None:
        state.average.load(broadcast_tensors(group, found.ema if found else None))
    if state.reduction is not None:
        state.reduction.load_state(progress["reduction"])
    state.best = Best(**progress["best"])
    tell(f"goes on from the checkpoint of step {state.step}")


def _train(run: RunDir, experiment: Experiment, manifest: Manifest, group: Group, stop_wanted: Callable[[], int],
           tell: Tell) -> dict[str, Any]:
    train, data = experiment.train, experiment.data
    samples = manifest.samples("train")
    order = training_order(experiment, samples)
    weights_K = class_weights(train, class_counts(samples.labels, len(samples.classes)))
    state = _fresh_state(experiment, len(manifest.classes), group, tell)
    _restore(state, run, group, tell)
    set_training(state.model)
    steps = total_steps(experiment, len(samples))
    validate = validator(experiment, manifest, state.model, group)
    environment = describe_environment(group.world, manifest.sha256, [ipex.PACKAGE] if train.ipex else [])
    warn_of_other_processors(environment, group, tell)
    with contextlib.ExitStack() as stack:
        log = writer = None
        if group.world.is_first:
            _begin(run, experiment, manifest, tell)
            for difference in record_environment(run, environment, state.step):
                tell(f"warning: the last bits may differ from an undisturbed run's: {difference}")
            log = stack.enter_context(RunLog(run, first_step=state.step, total_steps=steps))
            writer = CheckpointWriter(run, experiment.checkpoint.keep_last, log.note)
        reader = stack.enter_context(ShardReader(data.dataset, samples))
        stream = stack.enter_context(Stream(
            reader, samples, order, training_transform(experiment), side=data.image_size,
            lanes=carried_lanes(group.rank, group.size, train.lanes), first_step=state.step, last_step=steps,
            threads=data.decode_threads, prefetch_steps=data.prefetch_steps, local_steps=train.local_steps,
        ))
        witness = stack.enter_context(Ledger(run, samples.keys, group, state.step)) if train.ledger else None
        pace = build_pace(experiment, len(samples), weights_K, group, state.model, state.optimizer, state.reduction,
                          stream, witness)
        trained = Trainer(
            experiment=experiment, num_samples=len(samples), total_steps=steps, model=state.model,
            optimizer=state.optimizer, pace=pace, validate=validate, average=state.average, first_step=state.step,
            best=state.best, log=log, writer=writer, stop_wanted=lambda: stop_wanted() > 0,
            watch=build_watch(experiment.watch, group, len(carried_lanes(group.rank, group.size, train.lanes)), log),
        ).run()
    return _result(run, state, trained, group, stop_wanted())


def _result(run: RunDir, state: _State, trained: Trained, group: Group, stop_signal: int) -> dict[str, Any]:
    result: dict[str, Any] = {
        "run": str(run.root),
        "step": trained.step,
        "finished": trained.finished,
        "weights_sha256": weights_sha256(state.model.state_dict()),
        "ema_sha256": weights_sha256(state.average.tensors) if state.average is not None else None,
        "stopped_early": trained.early,
        "best_step": trained.best.step if trained.best.score is not None else None,
        "best_score": trained.best.score,
        "world_size": group.size,
        "signal": 0 if trained.finished else stop_signal or int(signal.SIGTERM),
    }
    if group.world.is_first and trained.finished:
        with storage_errors("the result could not be written", "the run's checkpoints are whole"):
            replace_file(run.result, json.dumps(result, indent=2).encode() + b"\n")
    return result


@contextlib.contextmanager
def _run_lock(run: RunDir) -> Iterator[None]:
    """Held by rank 0 while it trains: two trainings into one folder would mix. Ends with the process.

    A folder that was made for a run which then did not begin is removed.
    """
    with storage_errors(f"the run folder {run.root} could not be made", "nothing was started"):
        made = [folder for folder in (run.root, *run.root.parents) if not folder.exists()]
        run.root.mkdir(parents=True, exist_ok=True)
        fd = os.open(run.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CheckpointError(f"another training is writing into {run.root}", "nothing was started",
                                  "wait for it, end it, or give another --run folder") from None
        yield
    finally:
        if made and not run.experiment.exists():
            with contextlib.suppress(OSError):
                run.lock.unlink()
                for folder in made:
                    folder.rmdir()
        os.close(fd)


@contextlib.contextmanager
def _stop_requests() -> Iterator[Callable[[], int]]:
    """The signal that asked for a stop at the end of the period, or 0; a second SIGINT ends at once."""
    wanted = 0

    def ask(number: int, _: FrameType | None) -> None:
        nonlocal wanted
        wanted = number
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: wanted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
