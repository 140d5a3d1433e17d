"""From a resolved experiment and a dataset to the parts of a training run."""

from __future__ import annotations

import copy
import inspect
import json
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from distrib.comm.group import Group
from distrib.config import Experiment
from distrib.data.decode import Pixels
from distrib.data.keyed import key_of
from distrib.data.manifest import Manifest, SplitSamples, class_counts
from distrib.data.order import BalancedOrder, MixedOrder, Order, ShuffledOrder
from distrib.data.shards import ShardReader
from distrib.data.stream import TrainingTransform
from distrib.data.transform import EvalTransform, TrainTransform
from distrib.errors import ConfigError, counted
from distrib.forward import torch_forward
from distrib.models.table import build_model
from distrib.models.weights import freeze, load_starting_weights
from distrib.scoring import score_split
from distrib.train.loop import Validate

_MODEL_INIT = 12


def starting_model(experiment: Experiment, num_classes: int, tell: Callable[[str], None],
                   take_start: Callable[[nn.Module], None] | None = None) -> nn.Module:
    """The model with its starting weights, frozen parts and memory format. ``take_start`` gives it those of
    `train --from`."""
    torch.manual_seed(key_of(_MODEL_INIT, experiment.seed) >> 1)
    model = build_model(experiment.model.name, num_classes, experiment.model.dropout)
    if experiment.model.weights is not None:
        done = load_starting_weights(model, experiment.model.weights)
        fresh = f"; fresh: {', '.join(done.replaced)}" if done.replaced else ""
        tell(f"starts from {experiment.model.weights}: {counted(done.loaded, 'tensor')}{fresh}")
    if take_start is not None:
        take_start(model)
    if experiment.model.freeze:
        tell(f"frozen: {counted(freeze(model, experiment.model.freeze), 'tensor')}")
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def data_parallel(model: nn.Module, *, compiled: bool) -> DistributedDataParallel:
    """The model under DDP, which sends rank 0's weights to all. Collective."""
    module: Any = torch.compile(model) if compiled else model
    # Lanes average the buffers; torch 2.13 renamed the switch that keeps DDP from copying rank 0's.
    known = inspect.signature(DistributedDataParallel).parameters
    switch = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    off: dict[str, Any] = {switch: False}
    return DistributedDataParallel(module, gradient_as_bucket_view=True, **off)


def training_order(experiment: Experiment, samples: SplitSamples) -> Order:
    """Which samples each lane reads at each step. Raises ConfigError if classes can not be balanced."""
    train, window = experiment.train, experiment.data.shuffle_shards
    if experiment.data.sampling == "balanced" and experiment.data.new_ratio is None:
        counts = class_counts(samples.labels, len(samples.classes))
        absent = [name for name, count in zip(samples.classes, counts, strict=True) if not count]
        if absent:
            raise ConfigError(f"data.sampling = balanced, but the training split has no sample of {absent[0]!r}",
                              "classes can not be drawn equally often", "prepare a split that holds every class")
        return BalancedOrder(samples.shard_sizes, samples.labels, num_classes=len(samples.classes), lanes=train.lanes,
                             lane_batch=train.lane_batch, seed=experiment.seed, shuffle_shards=window)
    if experiment.data.new_ratio is not None:
        return _mixed_order(experiment, samples, experiment.data.new_ratio)
    return ShuffledOrder(samples.shard_sizes, lanes=train.lanes, lane_batch=train.lane_batch, seed=experiment.seed,
                         shuffle_shards=window)


def _mixed_order(experiment: Experiment, samples: SplitSamples, new_ratio: float) -> MixedOrder:
    train, data = experiment.train, experiment.data
    newest = int(samples.versions.max())
    is_new = samples.versions == newest
    if newest == 1 or is_new.all():
        raise ConfigError(f"data.new_ratio = {new_ratio:g}, but all training samples came with version {newest} of the "
                          "dataset", "there is nothing to mix", "leave it out, or name a version that "
                          "`distrib update` made")
    return MixedOrder(samples.shard_sizes, samples.labels, is_new, new_ratio, balanced=data.sampling == "balanced",
                      lanes=train.lanes, lane_batch=train.lane_batch, seed=experiment.seed,
                      shuffle_shards=data.shuffle_shards)


def training_transform(experiment: Experiment) -> TrainingTransform:
    """What happens to each training image."""
    data, augment = experiment.data, experiment.data.augment
    if augment.enabled:
        return TrainTransform(data.image_size, experiment.seed, augment.min_area, augment.max_aspect, augment.hflip,
                              augment.vflip, augment.rotate_degrees, augment.brightness, augment.contrast)
    plain = EvalTransform(data.image_size, data.eval_crop)

    def unchanging(content: bytes, kind: str, _epoch: int, _sample: int) -> Pixels:
        return plain(content, kind)

    return unchanging


def validator(experiment: Experiment, manifest: Manifest, model: nn.Module, group: Group) -> Validate | None:
    """Scores weights on the validation split; None where the dataset has none.

    Raises ManifestError if early stopping needs one, ConfigError if it lacks a class that evaluate.metric needs.
    """
    if experiment.train.early_stopping is None and all(shard.split != "val" for shard in manifest.shards):
        return None
    samples = manifest.samples("val")
    counts = class_counts(samples.labels, len(samples.classes))
    absent = [name for name, count in zip(samples.classes, counts, strict=True) if not count]
    metric = experiment.evaluate.metric
    if absent and metric not in ("accuracy", "loss"):
        raise ConfigError(f"evaluate.metric = {metric}, but the validation split has no sample of {absent[0]!r}",
                          "it would not be defined",
                          "choose accuracy or loss, or prepare a split that holds every class")
    judge = copy.deepcopy(model).eval()
    # In float32 whatever training computes in: so do `evaluate` and the bundles, whose threshold is chosen here.
    forward = torch_forward(judge, experiment.data.mean, experiment.data.std)
    transform = EvalTransform(experiment.data.image_size, experiment.data.eval_crop)

    def validate(weights: Mapping[str, Tensor]) -> dict[str, Any]:
        judge.load_state_dict(weights)
        with ShardReader(experiment.data.dataset, samples) as reader:
            logits_NK = score_split(forward, reader, samples, transform, batch=experiment.evaluate.batch,
                                    rank=group.rank, size=group.size,
                                    decode_threads=experiment.data.decode_threads,
                                    sum_over_ranks=group.sum_over_ranks)
        scores = None
        if group.world.is_first:
            # scikit-learn takes a second and a half to import: only rank 0 needs it.
            from distrib import metrics

            report = metrics.validate(logits_NK, samples.labels, samples.classes, experiment.evaluate)
            scores = json.dumps({**report, "score": metrics.goodness(report, experiment.evaluate.metric)}).encode()
        received: dict[str, Any] = json.loads(group.broadcast_bytes(scores))
        return received

    return validate
