"""From runs to one bundle."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from torch import nn

from distrib.bundle import Ensemble, GreedyStep, Member, Weights
from distrib.config import Experiment
from distrib.data.folds import fold_view
from distrib.decision import positive_index
from distrib.ensemble.decide import Decided, decide_on_split, decide_out_of_fold
from distrib.ensemble.members import HeldOut, answers, find_held_out, load_members, of_pixels
from distrib.ensemble.module import EnsembleModel, Ranking
from distrib.ensemble.wishes import Wishes, check_classes, check_out_of_fold
from distrib.export.run import write_bundle
from distrib.export.subject import Subject
from distrib.models.weights import weights_sha256
from distrib.trained import Trained

Tell = Callable[[str], None]


def run_ensemble(runs: Sequence[Path], wishes: Wishes, tell: Tell = lambda _: None) -> dict[str, Any]:
    """Combine the best checkpoints of runs into the bundle ``wishes.out``; returns what `ensemble --json` prints.

    Reads the training and validation splits only. Raises BundleError, CheckpointError, ConfigError, DataError,
    MissingPartError, StorageError.
    """
    members = load_members(runs, wishes.metric, tell)
    held_out = find_held_out(members)
    experiment = _experiment(members, held_out, wishes)
    check_classes(wishes, len(members[0].classes))
    if held_out.kind == "out_of_fold":
        check_out_of_fold(wishes)
    side, classes = experiment.data.image_size, members[0].classes
    modules = [of_pixels(member, side) for member in members]
    if held_out.kind == "split":
        samples = held_out.manifest.samples("val")
        tell(f"{len(members)} members answer {len(samples)} validation samples")
        decided = decide_on_split(answers(modules, wishes.tta, samples, experiment), samples.labels, classes,
                                  experiment.evaluate, wishes)
    else:
        tell(f"{len(members)} members answer their own folds")
        own = [fold_view(held_out.manifest, member.experiment.data).samples("val") for member in members]
        logits = [answers([module], wishes.tta, samples, experiment)[0]
                  for module, samples in zip(modules, own, strict=True)]
        decided = decide_out_of_fold(logits, [samples.labels for samples in own], classes, experiment.evaluate, wishes)
    for note in decided.notes:
        tell(note)
    record = _record(members, held_out, decided, experiment, wishes)
    for line in lines(record):
        tell(line)
    module = _module(modules, decided, classes, experiment, wishes)
    subject = Subject(
        module=module, experiment=experiment, classes=classes, threshold=decided.threshold,
        validation=decided.validation, manifest=held_out.manifest, ensemble=record,
        weights=Weights(sha256=weights_sha256(module.state_dict()), kind="ensemble",
                        step=max(member.checkpoint.step for member in members),
                        num_parameters=sum(parameter.numel() for parameter in module.parameters())))
    result = write_bundle(subject, out=wishes.out, exact=wishes.exact, reduced=wishes.reduced,
                          tolerance=wishes.tolerance, num_samples=wishes.num_samples, max_drop=wishes.max_drop,
                          calibration=wishes.calibration, tell=tell)
    return {**result, "ensemble": record.model_dump(mode="json")}


def lines(record: Ensemble) -> list[str]:
    """What each member adds, for people."""
    where = "validation samples" if record.held_out == "split" else "samples out of fold, one member each"
    told = [f"{record.metric} {record.value:.4f} on {record.num_samples} {where}"]
    for member in record.members:
        adds = "" if member.adds is None else f", adds {member.adds:+.4f}"
        fold = "" if member.fold is None else f" (fold {member.fold})"
        told.append(f"{member.run}{fold}: weight {member.weight:.3f}, alone {member.alone:.4f}{adds}")
    if record.path:
        told.append("greedy: " + ", ".join(f"{step.run} {step.value:.4f}" for step in record.path))
    return told


def _experiment(members: Sequence[Trained], held_out: HeldOut, wishes: Wishes) -> Experiment:
    """What the bundle names as its experiment: the first member's, with what is true of all."""
    first = members[0].experiment
    side = max(member.experiment.data.image_size for member in members)
    starts = [member.experiment.model.start for member in members if member.experiment.model.start is not None]
    start = None
    if starts:  # so that `promote` knows every dataset that was trained on
        start = starts[0].model_copy(update={"datasets": _each_once(one.datasets for one in starts),
                                             "in_folds": _each_once(one.in_folds for one in starts)})
    evaluate = first.evaluate.model_copy(update={"metric": wishes.metric or first.evaluate.metric})
    return first.model_copy(update={
        "data": held_out.data.model_copy(update={"image_size": side}), "evaluate": evaluate,
        "model": first.model.model_copy(update={"start": start})})


def _each_once(digests: Iterable[tuple[str, ...]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(chain.from_iterable(digests)))


def _module(modules: Sequence[nn.Module], decided: Decided, classes: Sequence[str], experiment: Experiment,
            wishes: Wishes) -> EnsembleModel:
    """The members that were chosen, as one."""
    chosen = [number for number, weight in enumerate(decided.weights_M) if weight]
    positive = positive_index(classes, experiment.evaluate.positive_class)
    rankings = None
    if decided.ranks is not None and positive is not None:
        rankings = [Ranking(decided.ranks[number], positive) for number in chosen]
    return EnsembleModel(
        [modules[number] for number in chosen], [float(decided.weights_M[number]) for number in chosen], wishes.tta,
        num_classes=len(classes), rankings=rankings, member_t=decided.member_t, temperature=decided.temperature,
        offset=decided.offset, positive=positive).eval()


def _record(members: Sequence[Trained], held_out: HeldOut, decided: Decided, experiment: Experiment,
            wishes: Wishes) -> Ensemble:
    names = [str(member.run.root) for member in members]
    return Ensemble(
        members=tuple(
            Member(run=name, weights_sha256=member.weights_sha256, step=member.checkpoint.step,
                   model=member.experiment.model.name, image_size=member.experiment.data.image_size,
                   fold=member.experiment.data.fold, weight=float(weight), alone=alone, adds=adds)
            for name, member, weight, alone, adds in zip(names, members, decided.weights_M, decided.alone_M,
                                                         decided.adds_M, strict=True)),
        combine=wishes.combine, select=wishes.select, tta=wishes.tta,
        temperature=decided.temperature if held_out.kind == "split" else decided.member_t, offset=decided.offset,
        held_out=held_out.kind, num_samples=decided.num_samples, metric=experiment.evaluate.metric,
        value=decided.value, path=tuple(GreedyStep(run=names[number], value=value) for number, value in decided.path))
