"""The schema of an experiment: every key, its meaning, its default and its bounds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from distrib.documents import Section, Sha256, apply_overrides, read_yaml, validate
from distrib.durable import SealError, open_sealed, seal
from distrib.errors import CheckpointError
from distrib.rundir import RunDir

FORMAT = "distrib-experiment/1"

Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(ge=1)]
Rgb = tuple[float, float, float]

MOST_LANES = {"exact16": (256, 6), "exact10": (16, 4)}
"""Of reductions with few bits: the most lanes, and the bits that are then left to a lane."""


def _nonzero(values: Rgb) -> Rgb:
    if min(values) <= 0:
        raise ValueError("must be above 0")
    return values


def _usable(path: Path) -> Path:
    if "\0" in str(path) or str(path) != str(path).encode(errors="replace").decode():
        raise ValueError("can not be a path")
    return path


FilePath = Annotated[Path, AfterValidator(_usable)]


class AugmentConfig(Section):
    """Random changes to a training image; keyed by (seed, epoch, sample), so they never depend on the ranks."""

    enabled: bool = True
    """Without it, training images are treated like those of an evaluation."""
    min_area: Annotated[float, Field(gt=0, le=1)] = 0.35
    """Smallest part of the image's area that a random crop keeps; 1 keeps the whole image."""
    max_aspect: Annotated[float, Field(ge=1, le=4)] = 4 / 3
    """Largest stretch of the crop, either way."""
    hflip: bool = True
    """Mirror every other image left to right."""
    vflip: bool = False
    """Mirror every other image top to bottom."""
    rotate_degrees: Annotated[float, Field(ge=0, le=180)] = 0.0
    """Rotation drawn evenly from plus or minus this angle."""
    brightness: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Relative change of all values, drawn evenly from plus or minus this."""
    contrast: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Relative change of the distance from mid-grey, drawn evenly from plus or minus this."""


class DataConfig(Section):
    dataset: FilePath
    """Folder with dataset.json, written by `distrib prepare` or `distrib adopt`."""
    image_size: Annotated[int, Field(ge=8, le=2048)] = 224
    """Height and width in pixels of what the model sees."""
    mean: Rgb = (0.485, 0.456, 0.406)
    """Subtracted from each channel, on the scale 0 to 1. The default is ImageNet's."""
    std: Annotated[Rgb, AfterValidator(_nonzero)] = (0.229, 0.224, 0.225)
    """Divides each channel, on the scale 0 to 1. The default is ImageNet's."""
    eval_crop: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Side of the central square that evaluation keeps, as part of the image's shorter side."""
    augment: AugmentConfig = AugmentConfig()
    sampling: Literal["shuffle", "balanced"] = "shuffle"
    """shuffle: each sample once an epoch. balanced: each class equally often, rare samples repeated."""
    new_ratio: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Part of the draws from samples that came with the dataset's newest version; none: each sample once an epoch. With
    it an epoch is as many draws as the split has samples."""
    folds: Annotated[int, Field(ge=2, le=100)] | None = None
    """Cut the samples into so many folds by group, each with every class in proportion; a run validates on `fold` and
    trains on the others. The test split is untouched. `distrib ensemble --folds` trains one run for each."""
    fold: Annotated[int, Field(ge=0)] | None = None
    """The fold to validate on, from 0."""
    fold_over: Literal["train+val", "train"] = "train+val"
    """What is cut into folds. train: the validation split is kept from all of them, for an ensemble to be chosen on."""
    fold_seed: Annotated[int, Field(ge=0, lt=1 << 63)] = 0
    """Which groups go into which fold; `seed` has no part in it."""
    shuffle_shards: Annotated[int, Field(ge=1, le=256)] = 8
    """Shards whose samples are mixed at a time; bounds the shards that a lane has open."""
    decode_threads: Annotated[int, Field(ge=1, le=64)] = 1
    """Threads that decode images, beside the computing ones."""
    prefetch_steps: Annotated[int, Field(ge=1, le=16)] = 2
    """Steps whose images are decoded ahead; bounds the memory of the stream."""

    @model_validator(mode="after")
    def _fold_is_one(self) -> DataConfig:
        if self.fold is not None and (self.folds is None or self.fold >= self.folds):
            raise ValueError(f"data.fold = {self.fold} is none of data.folds = {self.folds}; they count from 0")
        return self

    @property
    def learns_val(self) -> bool:
        """Whether the dataset's validation split is cut into the folds, so that some of it is trained on."""
        return self.folds is not None and "val" in self.fold_over


class StartConfig(Section):
    """What `distrib train --from` took weights from; written by it, and of no use in an experiment's file."""

    source: str
    """Written by `distrib train --from`, as the next four: the run or bundle that was started from."""
    weights_sha256: Sha256
    """Digest of its weights, of which the run keeps a copy."""
    classes: tuple[str, ...]
    """Its classes: their rows of the head are taken over, by name."""
    datasets: tuple[Sha256, ...]
    """Seals of the datasets that it, and what it started from itself, was trained on."""
    in_folds: tuple[Sha256, ...] = ()
    """Of these, the ones whose validation split was cut into folds with the training split: it learnt from both."""


class ModelConfig(Section):
    name: str
    """A name of the table of models, LIBRARY/NAME, or package.module:function; see `distrib.models.table`."""
    weights: FilePath | None = None
    """A safetensors file to start from; its head is replaced if the number of classes differs."""
    start: StartConfig | None = None
    freeze: tuple[str, ...] = ()
    """Parameters not to train, as shell patterns over their names, such as "layer1.*"."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout before the last layer."""


class EarlyStoppingConfig(Section):
    patience: Positive
    """Validations without improvement after which the run ends."""
    min_delta: Annotated[float, Field(ge=0)] = 0.0


class TrainConfig(Section):
    epochs: Positive = 10
    """Passes over the training split; the last step may run on into the next one."""
    steps: Positive | None = None
    """Number of steps; replaces `epochs` where given."""
    global_batch: Positive = 64
    """Samples a step, over all lanes."""
    lanes: Positive = 8
    """Micro-batches a step; the number of ranks may be anything from 1 to this, with the same result."""
    threads: Annotated[int, Field(ge=1, le=1024)] = 1
    """Threads a lane computes with, on every rank. Part of the experiment: other values give other last bits."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: Annotated[float, Field(gt=0)] = 0.1
    """Highest learning rate, for the whole global batch."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Of SGD."""
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    """Of AdamW."""
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    """Applied to weights of two or more dimensions; not to biases and normalisation."""
    warmup_epochs: Annotated[float, Field(ge=0)] = 0.0
    """Passes during which the learning rate rises from zero."""
    schedule: Literal["cosine", "constant"] = "cosine"
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    class_weights: Literal["none", "balanced"] | tuple[Annotated[float, Field(gt=0)], ...] = "none"
    """Weights in the loss: balanced = inverse to the class's share of the training split; or one number a class."""
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Keep a moving average of the weights, and evaluate and export that."""
    early_stopping: EarlyStoppingConfig | None = None
    """End the run when evaluate.metric on the validation split no longer rises."""
    ledger: bool = False
    """Write the keys of the samples of every step and lane to the run's ledger folder."""
    clip_norm: Annotated[float, Field(gt=0)] | None = None
    """Largest norm of the whole gradient."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: bf16 autocast where rank 0's processor is faster in it (AMX, or AVX512_BF16 of AMD), else fp32."""
    reduction: Literal["exact", "exact16", "exact10", "fast"] = "exact"
    """exact: lanes summed in fixed point, the same bits at any world size. exact16: so too, in half the bytes, of up
    to 256 lanes, rounded at random to 16 bits. exact10: in a third of the bytes, of up to 16 lanes; fewer lanes are
    rounded finer. fast: ordinary floating-point sums."""
    compress: Literal["none", "bf16", "powersgd"] = "none"
    """Of reduction fast: send gradients as bfloat16, or as low-rank products with error feedback (PowerSGD)."""
    powersgd_rank: Annotated[int, Field(ge=1, le=256)] = 4
    """Rank of the products that stand for a weight's gradient."""
    powersgd_start: Annotated[int, Field(ge=2)] = 100
    """Steps that send whole gradients before PowerSGD begins, also after a run was resumed: what PowerSGD held back
    is in no checkpoint."""
    local_steps: Positive = 1
    """Steps that each lane trains by itself before all meet (DiLoCo); 1: they meet at every step. Validations,
    checkpoints and stops wait for the next meeting."""
    outer_lr: Annotated[float, Field(gt=0)] = 0.7
    """Of local steps: the part of the lanes' mean move that is taken, by SGD with Nesterov momentum."""
    outer_momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Of local steps."""
    compile: bool = False
    """torch.compile the model: minutes of warm-up for a few per cent."""
    ipex: bool = False
    """Compute with intel-extension-for-pytorch 2.8, where a site has it with torch 2.8; see ipex.md."""

    @model_validator(mode="after")
    def _fits_together(self) -> TrainConfig:
        if self.global_batch % self.lanes:
            raise ValueError(f"train.lanes ({self.lanes}) must divide train.global_batch ({self.global_batch})")
        most, bits = MOST_LANES.get(self.reduction, (self.lanes, 0))
        if self.lanes > most:
            raise ValueError(f"train.reduction = {self.reduction} with train.lanes = {self.lanes}: fewer than {bits} "
                             f"bits would be left to a lane; take exact, or at most {most} lanes")
        if self.compress != "none" and self.reduction != "fast":
            raise ValueError(f"train.compress = {self.compress} is for train.reduction = fast, not {self.reduction}; "
                             "take exact16 for fewer bytes and exact sums")
        if self.local_steps > 1 and self.reduction == "fast":
            raise ValueError("train.local_steps sums exactly, so train.reduction = fast would change nothing; "
                             "take exact, exact16 or exact10")
        return self

    @property
    def lane_batch(self) -> int:
        """Samples of one lane in one step."""
        return self.global_batch // self.lanes


class EvaluateConfig(Section):
    """How models are judged, in training (validation) and after it."""

    every_epochs: Positive = 1
    """Passes between validations."""
    batch: Positive = 64
    """Images a forward pass; does not depend on the world size, so that scores do not either."""
    metric: Literal["accuracy", "balanced_accuracy", "auroc", "average_precision", "partial_auroc", "loss"] = "accuracy"
    """Decides which checkpoint is the best, and early stopping."""
    positive_class: str | None = None
    """With two classes, the one to detect; the second in order by default."""
    tpr_floor: Annotated[float, Field(ge=0, lt=1)] = 0.8
    """partial_auroc is the area above this true-positive rate."""
    sensitivity: Annotated[float, Field(gt=0, lt=1)] = 0.95
    """Sensitivity at which the specificity is reported."""
    specificity: Annotated[float, Field(gt=0, lt=1)] = 0.95
    """Specificity at which the sensitivity is reported."""
    bootstrap: Annotated[int, Field(ge=0, le=100_000)] = 500
    """Resamples for confidence intervals, drawn by group; 0 leaves them out."""


class CommConfig(Section):
    backend: Literal["auto", "gloo", "oneccl", "horovod", "oneccl-bind-pt", "mpi"] = "auto"
    """Who carries the sums; auto: oneccl where all ranks have it and a core each, else gloo (docs/communication.md)."""
    timeout_s: Annotated[float, Field(ge=1, le=1e6)] = 300.0
    """Seconds without an answer after which a peer counts as lost."""
    move_lanes: bool = True
    """Give ranks that are measured to be slow fewer lanes; with exact sums, where that changes nothing of the model."""
    silence_s: Annotated[float, Field(ge=1, le=1e6)] = 10.0
    """Of elastic runs: seconds without a sign of life after which a rank counts as lost, and the others go on."""


class CheckpointConfig(Section):
    every_steps: Annotated[int, Field(ge=0)] = 0
    """Steps between checkpoints, besides those at validations and at the end; 0: only those."""
    keep_last: Positive = 2
    """Newest checkpoints kept, besides the best."""


class GuardConfig(Section):
    """Comparisons of all ranks' state, bit by bit, with exact sums; they change nothing of the model."""

    every_steps: Annotated[int, Field(ge=0)] = 50
    """Steps between comparisons, besides those before checkpoints; 0: never. A copy of the state is kept in memory."""


class WatchConfig(Section):
    """Looks at nodes and ranks while training; they change nothing of the model."""

    every_s: Annotated[float, Field(ge=0, le=1e6)] = 10.0
    """Seconds between looks, about: all ranks look after the same step; 0: never."""
    slow_factor: Annotated[float, Field(gt=1, le=1e6)] = 1.5
    """A rank is named as slow when its own work takes so many times the others' median, or its own best."""


class Experiment(Section):
    """One experiment; resolved, it determines a model to the last bit (with processor and libraries)."""

    data: DataConfig
    model: ModelConfig
    train: TrainConfig = TrainConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    comm: CommConfig = CommConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    watch: WatchConfig = WatchConfig()
    guard: GuardConfig = GuardConfig()
    seed: Annotated[int, Field(ge=0, lt=1 << 63)] = 0

    def to_bytes(self) -> bytes:
        """The resolved experiment as a sealed document."""
        return seal(FORMAT, {"experiment": self.model_dump(mode="json")}, indent=2)


def load_experiment(path: Path, overrides: Sequence[str] = ()) -> Experiment:
    """Read an experiment and apply ``section.key=value`` overrides. Raises ConfigError."""
    document = apply_overrides(read_yaml(path, "experiment"), overrides)
    return validate(Experiment, document, f"the experiment {path}")


def load_run_experiment(run: RunDir) -> Experiment:
    """The resolved experiment that a run was begun with. Raises CheckpointError if this is no run."""
    try:
        document = open_sealed(run.experiment.read_bytes(), FORMAT)
        return validate(Experiment, document["experiment"], str(run.experiment))
    except FileNotFoundError:
        raise CheckpointError(f"{run.root} is no run: {run.experiment.name} is missing", "there is no model to use",
                              "name a folder that `distrib train --run` wrote") from None
    except OSError as error:
        raise CheckpointError(f"{run.experiment} can not be read: {error.strerror}", "the run can not be used",
                              "check the path and its permissions") from error
    except (SealError, KeyError) as error:
        raise CheckpointError(f"{run.experiment} is damaged: {error}", "the run can not be used",
                              "restore it from a backup, or train again into another --run folder") from error
