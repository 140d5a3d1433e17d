"""One rank of a training run, from the experiment file to the result."""

from __future__ import annotations

import contextlib
import copy
import fcntl
import inspect
import json
import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from distrib import metrics
from distrib.checkpoint import CheckpointWriter, newest_checkpoint
from distrib.comm.group import Group
from distrib.config import Experiment
from distrib.data.keyed import key_of
from distrib.data.manifest import FILE_NAME, Manifest, SplitSamples, class_counts, load_manifest
from distrib.data.order import BalancedOrder, Order, ShuffledOrder, carried_lanes
from distrib.data.shards import ShardReader
from distrib.data.stream import Stream
from distrib.data.transform import EvalTransform, TrainTransform
from distrib.durable import replace_file
from distrib.errors import CheckpointError, ConfigError, storage_errors
from distrib.models.table import build_model
from distrib.models.weights import freeze, load_starting_weights, set_training, weights_sha256
from distrib.rundir import RunDir
from distrib.forward import torch_forward
from distrib.scoring import score_split
from distrib.train.environment import describe_environment, record_environment
from distrib.train.ledger import Ledger
from distrib.train.log import RunLog
from distrib.train.loop import Best, Trained, Trainer, Validate
from distrib.train.optimise import (
    MovingAverage,
    build_optimizer,
    class_weights,
    lane_loss,
    load_optimizer_tensors,
)
from distrib.train.precision import Normalise
from distrib.train.reduction import REDUCTIONS
from distrib.train.resume import broadcast_tensors, settle_experiment
from distrib.train.step import LaneStep, statistic_sizes
from distrib.world import World

Tell = Callable[[str], None]
"""Shows the user one line; does nothing on ranks other than 0."""

_MODEL_INIT = 12


def run_train(experiment_path: Path | None, overrides: Sequence[str], run_path: Path | None, world: World,
              tell: Tell) -> dict[str, Any]:
    """Train, or go on where the run stopped. Collective over the world's ranks.

    Returns what `train --json` prints; the same on all ranks. Raises any DistribError.
    """
    run = _run_folder(experiment_path, run_path)
    experiment = settle_experiment(run, experiment_path, overrides)
    manifest = load_manifest(experiment.data.dataset)
    _check_world(experiment, world)
    torch.set_num_threads(experiment.train.threads)
    _advise_threads(experiment, world, tell)
    with (
        Group(world, experiment.comm.backend, experiment.comm.timeout_s) as group,
        _run_lock(run) if world.is_first else contextlib.nullcontext(),
        _stop_requests() as stop_wanted,
    ):
        if world.is_first:
            _begin(run, experiment, manifest, tell)
        return _train(run, experiment, manifest, group, stop_wanted, tell)


def _run_folder(experiment_path: Path | None, run_path: Path | None) -> RunDir:
    if run_path is not None:
        return RunDir(run_path)
    if experiment_path is None:
        raise ConfigError("neither an experiment nor --run is given", "there is nothing to train",
                          "give EXPERIMENT.yaml, or --run DIR to go on with a run")
    return RunDir(Path("runs") / experiment_path.stem)


def _check_world(experiment: Experiment, world: World) -> None:
    lanes = experiment.train.lanes
    if world.size > lanes:
        raise ConfigError(f"{world.size} ranks for train.lanes = {lanes}", "some ranks would have nothing to do",
                          f"start at most {lanes} ranks, or begin a new run with more lanes")


def _advise_threads(experiment: Experiment, world: World, tell: Tell) -> None:
    threads, cores = experiment.train.threads, len(os.sched_getaffinity(0))
    lanes = experiment.train.lanes
    if cores > threads:
        tell(f"note: this rank may use {cores} cores and computes with train.threads = {threads}; more ranks use the "
             f"others with the same result (up to {lanes}; `launch run` starts them), more threads do with other "
             "last bits")


def _begin(run: RunDir, experiment: Experiment, manifest: Manifest, tell: Tell) -> None:
    """Write what the run is, or check that it goes on with the same data. Only on rank 0."""
    with storage_errors(f"the run folder {run.root} could not be written", "nothing was started"):
        dataset = run.root / "dataset.sha256"
        if run.experiment.exists():
            if dataset.exists() and dataset.read_text().strip() != manifest.sha256:
                raise CheckpointError(
                    f"the dataset {experiment.data.dataset / FILE_NAME} is not the one that {run.root} was begun with",
                    "the run was not continued", "give the same dataset, or train into another --run folder")
            return
        replace_file(dataset, manifest.sha256.encode() + b"\n")
        replace_file(run.experiment, experiment.to_bytes())
    train = experiment.train
    tell(f"run {run.root}: {experiment.model.name} in {train.precision}, {train.lanes} lanes of "
         f"{train.lane_batch} images a step, {train.reduction} sums")


def _train(run: RunDir, experiment: Experiment, manifest: Manifest, group: Group, stop_wanted: Callable[[], int],
           tell: Tell) -> dict[str, Any]:
    train = experiment.train
    samples = manifest.samples("train")
    model = _build(experiment, len(manifest.classes), tell)
    optimizer = build_optimizer(model, train)
    average = MovingAverage(model, train.ema_decay) if train.ema_decay is not None else None
    parameters = [p for p in model.parameters() if p.requires_grad]
    reduction = REDUCTIONS[train.reduction](group, parameters, statistic_sizes(model), train.lanes)
    found = newest_checkpoint(run, tell) if group.world.is_first else None
    header = {"step": found.step, "progress": found.progress} if found else {"step": 0, "progress": None}
    header = json.loads(group.broadcast_bytes(json.dumps(header).encode() if group.world.is_first else None))
    first_step, progress = int(header["step"]), header["progress"]
    best = Best()
    if progress is not None:
        _load_model(model, broadcast_tensors(group, found.model if found else None))
        load_optimizer_tensors(model, optimizer, broadcast_tensors(group, found.optimizer if found else None))
        if average is not None:
            average.load(broadcast_tensors(group, found.ema if found else None))
        reduction.load_state(progress["reduction"])
        best = Best(**progress["best"])
        tell(f"goes on from the checkpoint of step {first_step}")
    set_training(model)
    module = torch.compile(model) if train.compile else model
    # Lanes average the buffers; torch 2.13 renamed the switch that keeps DDP from copying rank 0's.
    parameter_names = inspect.signature(DistributedDataParallel).parameters
    switch = "forward_sync_buffers" if "forward_sync_buffers" in parameter_names else "broadcast_buffers"
    ddp = DistributedDataParallel(module, gradient_as_bucket_view=True, **{switch: False})
    if average is not None and progress is None:
        average.load(model.state_dict())  # DDP has made all ranks start from rank 0's weights
    reduction.attach(ddp)
    lane_step = LaneStep(
        model, ddp, reduction, loss=lane_loss(train, class_weights(train, class_counts(samples.labels,
                                                                                       len(samples.classes)))),
        prepare=Normalise(experiment.data.mean, experiment.data.std), autocast=train.precision == "bf16",
        seed=experiment.seed, global_batch=train.global_batch,
    )
    lanes = carried_lanes(group.rank, group.size, train.lanes)
    with contextlib.ExitStack() as stack:
        reader = stack.enter_context(ShardReader(experiment.data.dataset, samples))
        trainer = Trainer(
            experiment=experiment, num_samples=len(samples), model=model, optimizer=optimizer, reduction=reduction,
            lane_step=lane_step, stream=None, validate=_validator(experiment, manifest, model, group),
            average=average, first_step=first_step, best=best, log=None,
            writer=CheckpointWriter(run, experiment.checkpoint.keep_last) if group.world.is_first else None,
            stop_wanted=lambda: stop_wanted() > 0,
        )
        if group.world.is_first:
            environment = describe_environment(group.world, manifest.sha256)
            for difference in record_environment(run, environment, first_step):
                tell(f"warning: the last bits may differ from an undisturbed run's: {difference}")
            trainer.log = stack.enter_context(RunLog(run, first_step=first_step, total_steps=trainer.total_steps))
        if train.ledger:
            trainer.witness = stack.enter_context(Ledger(run, samples.keys, group, first_step))
        trainer.stream = stack.enter_context(Stream(
            reader, samples, _order(experiment, samples), _train_transform(experiment), side=experiment.data.image_size,
            lanes=lanes, first_step=first_step, last_step=trainer.total_steps, threads=experiment.data.decode_threads,
            prefetch_steps=experiment.data.prefetch_steps,
        ))
        trained = trainer.run()
    return _result(run, model, average, trained, group, stop_wanted())


def _build(experiment: Experiment, num_classes: int, tell: Tell) -> nn.Module:
    """The model with its starting weights, frozen parts and memory format; equal on all ranks."""
    torch.manual_seed(key_of(_MODEL_INIT, experiment.seed) >> 1)
    model = build_model(experiment.model.name, num_classes, experiment.model.dropout)
    if experiment.model.weights is not None:
        done = load_starting_weights(model, experiment.model.weights)
        fresh = f"; fresh: {', '.join(done.replaced)}" if done.replaced else ""
        tell(f"starts from {experiment.model.weights}: {done.loaded} tensors{fresh}")
    if experiment.model.freeze:
        tell(f"frozen: {freeze(model, experiment.model.freeze)} tensors")
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def _load_model(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise CheckpointError(f"the checkpoint does not fit the model: {str(error).splitlines()[-1].strip()}",
                              "the run was not continued", "use the code that the run was begun with") from error


def _order(experiment: Experiment, samples: SplitSamples) -> Order:
    train, window = experiment.train, experiment.data.shuffle_shards
    if experiment.data.sampling == "balanced":
        counts = class_counts(samples.labels, len(samples.classes))
        if not counts.all():
            absent = [name for name, count in zip(samples.classes, counts, strict=True) if not count]
            raise ConfigError(f"data.sampling = balanced, but the training split has no sample of {absent[0]!r}",
                              "classes can not be drawn equally often", "prepare a split that holds every class")
        return BalancedOrder(samples.shard_sizes, samples.labels, num_classes=len(samples.classes), lanes=train.lanes,
                             lane_batch=train.lane_batch, seed=experiment.seed, shuffle_shards=window)
    return ShuffledOrder(samples.shard_sizes, lanes=train.lanes, lane_batch=train.lane_batch, seed=experiment.seed,
                         shuffle_shards=window)


def _train_transform(experiment: Experiment) -> Callable[[bytes, str, int, int], Any]:
    data, augment = experiment.data, experiment.data.augment
    if not augment.enabled:
        plain = EvalTransform(data.image_size, data.eval_crop)
        return lambda content, kind, epoch, sample: plain(content, kind)
    return TrainTransform(data.image_size, experiment.seed, augment.min_area, augment.max_aspect, augment.hflip,
                          augment.vflip, augment.rotate_degrees, augment.brightness, augment.contrast)


def _validator(experiment: Experiment, manifest: Manifest, model: nn.Module, group: Group) -> Validate | None:
    """Scores weights on the validation split; None where the dataset has none."""
    if not any(shard.split == "val" for shard in manifest.shards):
        if experiment.train.early_stopping is not None:
            manifest.samples("val")  # says so
        return None
    samples = manifest.samples("val")
    judge = copy.deepcopy(model).eval()
    forward = torch_forward(judge, experiment.data.mean, experiment.data.std, experiment.train.precision)
    transform = EvalTransform(experiment.data.image_size, experiment.data.eval_crop)

    def validate(weights: Mapping[str, Tensor]) -> dict[str, Any]:
        judge.load_state_dict(weights)
        with ShardReader(experiment.data.dataset, samples) as reader:
            logits_NK = score_split(forward, reader, samples, transform, batch=experiment.evaluate.batch,
                                    rank=group.rank, size=group.size,
                                    decode_threads=experiment.data.decode_threads,
                                    sum_over_ranks=group.sum_over_ranks)
        scores = metrics.validate(logits_NK, samples.labels, samples.classes, experiment.evaluate)
        return {**scores, "score": metrics.goodness(scores, experiment.evaluate.metric)}

    return validate


def _result(run: RunDir, model: nn.Module, average: MovingAverage | None, trained: Trained,
            group: Group, stop_signal: int) -> dict[str, Any]:
    result: dict[str, Any] = {
        "run": str(run.root),
        "step": trained.step,
        "finished": trained.finished,
        "weights_sha256": weights_sha256(model.state_dict()),
        "ema_sha256": weights_sha256(average.tensors) if average is not None else None,
        "stopped_early": trained.early,
        "best_step": trained.best.step if trained.best.score is not None else None,
        "best_score": trained.best.score,
        "world_size": group.size,
        "signal": 0 if trained.finished else stop_signal or signal.SIGTERM,
    }
    if group.world.is_first and trained.finished:
        with storage_errors("the result could not be written", "the run's checkpoints are whole"):
            replace_file(run.result, json.dumps(result, indent=2).encode() + b"\n")
    return result


@contextlib.contextmanager
def _run_lock(run: RunDir) -> Iterator[None]:
    """Held by rank 0 while it trains: two trainings into one folder would mix. Ends with the process."""
    with storage_errors(f"the run folder {run.root} could not be made", "nothing was started"):
        run.root.mkdir(parents=True, exist_ok=True)
        fd = os.open(run.root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CheckpointError(f"another training is writing into {run.root}", "nothing was started",
                                  "wait for it, end it, or give another --run folder") from None
        yield
    finally:
        os.close(fd)


@contextlib.contextmanager
def _stop_requests() -> Iterator[Callable[[], int]]:
    """The signal that asked for a stop at the next step boundary, or 0; a second SIGINT ends at once."""
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
