"""The members of an ensemble: whether they can be combined, and what was held out from all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from distrib.config import DataConfig, Experiment
from distrib.data.folds import fold_view
from distrib.data.manifest import Manifest, SplitSamples, load_manifest
from distrib.data.shards import ShardReader
from distrib.data.transform import EvalTransform
from distrib.ensemble.module import Shrink, views_of
from distrib.errors import ConfigError, DataError
from distrib.export.subject import check_dataset
from distrib.forward import PixelModel
from distrib.metrics import Floats
from distrib.rundir import RunDir
from distrib.scoring import Images, Logits, compute_threads, score_split
from distrib.trained import Trained, load_trained
from distrib.views import VIEWS

_NOTHING = "nothing was combined"


@dataclass(frozen=True)
class HeldOut:
    """What the ensemble is chosen on, or as much of that as there is."""

    kind: Literal["split", "out_of_fold"]
    """split: the manifest's validation split, which no member was trained on. out_of_fold: each member has a fold of
    its own and has seen those of the others."""
    manifest: Manifest
    """Without the test split: whoever asks for it meets a ManifestError."""
    data: DataConfig
    """The first member's, with the fold that the manifest's validation split is."""


def load_members(runs: Sequence[Path], metric: str | None, tell: Callable[[str], None]) -> list[Trained]:
    """The best checkpoints of runs that can be combined. Raises CheckpointError, ConfigError, MissingPartError."""
    members = [load_trained(RunDir(run), tell) for run in runs]
    first = members[0]
    seen: dict[str, Path] = {}
    for member in members:
        run = member.run.root
        for what, mine, theirs in _must_agree(member, first, metric):
            if mine != theirs:
                raise ConfigError(f"{run} and {first.run.root} differ in {what}: {mine} and {theirs}", _NOTHING,
                                  "combine runs that agree in it" + (", or give --metric" if "metric" in what else ""))
        if member.weights_sha256 in seen:
            raise ConfigError(f"{run} and {seen[member.weights_sha256]} hold the same weights", _NOTHING,
                              "name every member once")
        seen[member.weights_sha256] = run
    return members


def _must_agree(one: Trained, other: Trained, metric: str | None) -> list[tuple[str, Any, Any]]:
    """What an ensemble has one of: (name, the one's, the other's)."""
    mine, theirs = one.experiment, other.experiment
    pairs: list[tuple[str, Any, Any]] = [
        ("their classes", ", ".join(one.classes), ", ".join(other.classes)),
        ("the dataset that they were trained on", one.dataset_sha256[:16], other.dataset_sha256[:16]),
        ("data.eval_crop", mine.data.eval_crop, theirs.data.eval_crop),
        ("evaluate.positive_class", mine.evaluate.positive_class, theirs.evaluate.positive_class)]
    return pairs if metric is not None else [*pairs, ("evaluate.metric", mine.evaluate.metric, theirs.evaluate.metric)]


def find_held_out(members: Sequence[Trained]) -> HeldOut:
    """The samples that decide. Raises ConfigError or DataError where members were validated on different ones."""
    datas = [member.experiment.data for member in members]
    first = datas[0]
    manifest = load_manifest(first.dataset)
    for member in members:
        check_dataset(manifest, member)
    manifest = without_test(manifest)
    cuts = [None if data.fold is None else (data.folds, data.fold_over, data.fold_seed) for data in datas]
    whole = first.model_copy(update={"fold": None})
    if len({(cut, data.fold) for cut, data in zip(cuts, datas, strict=True)}) == 1:
        common = fold_view(manifest, first)
        if _has_val(common):
            return HeldOut("split", common, first)
    if all(cut is None or cut[1] == "train" for cut in cuts) and _has_val(manifest):
        return HeldOut("split", manifest, whole)
    if set(cuts) == {None}:
        raise DataError(f"the dataset {first.dataset} has no validation split", "members can not be compared",
                        "prepare it with one, or train the members with `distrib ensemble --folds`")
    if len(set(cuts)) > 1:
        raise ConfigError("the members were validated on different samples, and some have trained on those of others",
                          _NOTHING, "combine the folds of one cut (equal data.folds, data.fold_over and "
                          "data.fold_seed), or runs that share a validation split")
    if warm := next((member for member in members if member.experiment.model.start is not None), None):
        raise ConfigError(f"{warm.run.root} began with the weights of another run, which may have seen its fold",
                          _NOTHING,
                          "train the folds from nothing, or with data.fold_over = train and a validation split")
    return HeldOut("out_of_fold", manifest, whole)


def without_test(manifest: Manifest) -> Manifest:
    """A manifest that has no test split to read."""
    return manifest.model_copy(update={"shards": tuple(one for one in manifest.shards if one.split != "test")})


def _has_val(manifest: Manifest) -> bool:
    return any(shard.split == "val" for shard in manifest.shards)


def of_pixels(member: Trained, side: int) -> nn.Module:
    """uint8 images_NHWC [N, side, side, 3] to the member's logits_NK, in evaluation mode."""
    data = member.experiment.data
    pixel_model = PixelModel(member.model, data.mean, data.std)
    own = data.image_size
    return (pixel_model if own == side else nn.Sequential(Shrink(side, own), pixel_model)).eval()


def answers(modules: Sequence[nn.Module], tta: str, samples: SplitSamples, experiment: Experiment) -> Floats:
    """logits_MVNK of every member, view and sample. Raises ShardError, DivergedError."""
    data, num_views, num_classes = experiment.data, len(VIEWS[tta]), len(samples.classes)
    shape = (len(modules), num_views, num_classes)

    def forward(images_NHWC: Images) -> Logits:
        with torch.inference_mode():
            views = views_of(torch.from_numpy(images_NHWC), tta)
            parts = [torch.stack([module(view) for view in views]) for module in modules]
            columns: Logits = torch.stack(parts).permute(2, 0, 1, 3).reshape(len(images_NHWC), -1).numpy()
        return columns

    threads = experiment.train.threads
    torch.set_num_threads(threads)  # as in training; the other cores take other batches
    with ShardReader(data.dataset, samples) as reader:
        flat_NX = score_split(forward, reader, samples, EvalTransform(data.image_size, data.eval_crop),
                              batch=experiment.evaluate.batch, workers=max(1, compute_threads() // threads),
                              decode_threads=data.decode_threads, num_columns=int(np.prod(shape)))
    result: Floats = flat_NX.reshape(len(samples), *shape).transpose(1, 2, 0, 3).astype(np.float64)
    return result
