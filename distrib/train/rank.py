"""One rank of a run, through all its views: what it knows, and what all do together."""

from __future__ import annotations

import functools
import gc
import importlib
import json
import signal
import threading
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from distrib.comm.group import Group
from distrib.config import Experiment
from distrib.data.manifest import class_counts
from distrib.data.order import Order, carried_lanes
from distrib.data.shards import ShardReader
from distrib.data.stream import Stream
from distrib.durable import replace_file
from distrib.elastic.lease import Lease
from distrib.elastic.link import Link
from distrib.elastic.membership import NOTHING_YET, Position
from distrib.errors import storage_errors
from distrib.models.weights import set_training, weights_sha256
from distrib.train.agree import NotLetInError, agree_on_experiment
from distrib.train.balance import better_shares, lanes_of
from distrib.train.build import training_order, training_transform, validator
from distrib.train.guard import Guard, whole_source
from distrib.train.leave import all_end
from distrib.train.ledger import Ledger
from distrib.train.loop import Pause, Progress, Trained, Trainer, Validate, total_steps
from distrib.train.optimise import class_weights
from distrib.train.paces import build_pace
from distrib.train.reduction import Stop
from distrib.train.reductions import WORDS, build_reduction, build_words
from distrib.train.settle import Settled
from distrib.train.state import State, fresh_state, level, restore
from distrib.train.watch import build_watch
from distrib.train.writing import Writing

Tell = Callable[[str], None]


class Rank:
    """One rank of a run through all its views. A context manager, which closes what it writes.

    ``link`` is that of an elastic run; None: there is one view, and a lost peer ends the run.
    """

    def __init__(self, settled: Settled, stop_wanted: Callable[[], int], tell: Tell, lease: Lease,
                 link: Link | None, *, by_hand: bool = False) -> None:
        self.leaves = False
        """Whether this rank was asked to end, and the others go on."""
        self._by_hand = by_hand
        self._spared = False
        self._settled, self._run, self._link = settled, settled.run, link
        self._stop_wanted, self._tell_user = stop_wanted, tell
        self._counts: list[int] = []
        """Lanes that each rank carries."""
        self._samples = settled.manifest.samples("train")
        self._leads = False
        self._experiment: Experiment | None = None
        self._state: State | None = None
        self._guard = self._new_guard(settled.experiment)
        self._writing = Writing(settled.run, lease, link, self._tell)
        # What only a leader needs takes seconds to import, and any rank may come to lead.
        self._imports = threading.Thread(target=_import_ahead, name="imports", daemon=True)
        if link is not None:
            self._imports.start()

    @property
    def _has_new_members(self) -> bool:
        return self._link is not None and self._link.has_new_members

    def _new_guard(self, experiment: Experiment) -> Guard:
        return Guard(experiment.guard.every_steps if experiment.train.reduction != "fast" else 0, self._tell)

    @property
    def _newcomers(self) -> list[int]:
        """Ranks that join others which are on their way."""
        last = self._link.last if self._link is not None else None
        if last is None or max(last.positions.values()) == NOTHING_YET:
            return []
        return [rank for rank, member in enumerate(last.view.members) if last.positions[member] == NOTHING_YET]

    @property
    def position(self) -> Position:
        """Where this rank stands between views."""
        if self._state is None:
            return NOTHING_YET
        return Position(self._state.progress.step, int(self._state.progress.is_settled))

    def train(self, group: Group) -> dict[str, Any] | None:
        """One view, to its end. Collective. The run's result, or None if it only paused for somebody to join.

        What is raised leaves the state at a step boundary.
        """
        self._leads = group.world.is_first
        if self._experiment is None or self._has_new_members:
            if group.size > 1 and self._experiment is None:
                self._tell(f"communication: {group.backend} ({group.choice.why})")
            try:
                self._experiment = agree_on_experiment(self._settled, group, self._newcomers)
            except NotLetInError as error:
                self._tell(f"warning: {error.one_line()}")
                raise
            self._settled = self._settled.with_experiment(self._experiment)
            if group.rank in self._newcomers:
                self._guard = self._new_guard(self._experiment)
        experiment = self._experiment
        self._prepare(experiment, group)
        self._spare_collections()
        state = self._state
        assert state is not None
        # Mistakes show here, before anything is written.
        weights_K = class_weights(experiment.train, class_counts(self._samples.labels, len(self._samples.classes)))
        order, steps = training_order(experiment, self._samples), total_steps(experiment, len(self._samples))
        validate = validator(experiment, self._settled.manifest, state.model, group)
        if not self._guard.agree(group, state.tensors(), state.exponents, state.progress):  # what all begin with
            self._go_back(state, group)
        while True:
            self._writing.begin(experiment, self._settled.manifest, group, state.progress.step, steps,
                                compares=self._guard.compares)
            trained, trainer = self._train_together(experiment, group, state, weights_K, order, steps, validate)
            if trained.pause is Pause.DISAGREED:
                self._go_back(state, group)
            elif trained.pause is Pause.REGROUP:
                return None
            elif trained.pause is None:
                break
            gc.collect()  # an old DDP must not stay tied to the parameters
        group.all_reduce(torch.zeros(1))  # nobody leaves before the last checkpoint is written
        self._writing.remove_late_parts()
        result = self._result(trainer.progress, trained, group)
        group.all_reduce(torch.zeros(1))  # nor before the result is: if its writer is lost another one writes it
        return result

    def _prepare(self, experiment: Experiment, group: Group) -> None:
        """Collective: give every rank of the view the same state."""
        last = self._link.last if self._link is not None else None
        state = self._state
        if state is None or self._has_new_members:  # who has a state helps those that have none to begin
            fresh = fresh_state(self._run, experiment, self._settled.manifest.classes, group, self._tell)
            state = state or fresh
        if last is None or max(last.positions.values()) == NOTHING_YET:
            restore(state, self._run, group, self._tell)
        elif not last.is_level:
            level(state, group, last.view.members.index(last.source))
        self._state = state
        set_training(state.model)

    def _spare_collections(self) -> None:
        """Have the garbage collector pass over what was imported: a regroup waits for a collection, and half a million
        objects take it a quarter of a second."""
        if self._spared:
            return
        if self._link is not None:
            self._imports.join()
        gc.collect()
        gc.freeze()
        self._spared = True

    def _train_together(self, experiment: Experiment, group: Group, state: State, weights_K: Tensor | None,
                        order: Order, steps: int, validate: Validate | None) -> tuple[Trained, Trainer]:
        train, data, samples, progress = experiment.train, experiment.data, self._samples, state.progress
        reduction = None
        if train.local_steps == 1:
            reduction = build_reduction(train, group, state.model, experiment.seed)
            if state.exponents:
                reduction.load_state(state.exponents)
        if len(self._counts) != group.size:
            self._counts = [len(carried_lanes(rank, group.size, train.lanes)) for rank in range(group.size)]
        counts, lanes = self._counts, lanes_of(group.rank, self._counts)
        with ExitStack() as stack:
            reader = stack.enter_context(ShardReader(data.dataset, samples))
            stream = stack.enter_context(Stream(
                reader, samples, order, training_transform(experiment),
                side=data.image_size, lanes=lanes, first_step=progress.step, last_step=steps,
                threads=data.decode_threads, prefetch_steps=data.prefetch_steps, local_steps=train.local_steps,
            ))
            witness = None
            if train.ledger:
                committed = {}
                if self._link is not None and self._link.last is not None:
                    committed = {(step + 1, lane): order.batch(step, lane).samples
                                 for step in range(progress.before, progress.step) for lane in range(train.lanes)}
                witness = stack.enter_context(Ledger(self._run, samples.keys, group, progress.step, committed))
            for parameter in state.model.parameters():
                parameter.grad = None
            pace = build_pace(experiment, len(samples), weights_K, group, state.model, state.optimizer, reduction,
                              stream, witness, lanes)
            log = self._writing.log
            watch = build_watch(experiment.watch, group, len(lanes), log)

            def agree() -> bool:
                return self._guard.agree(group, state.tensors(), pace.state(), replace(progress, is_settled=False))

            def moves() -> bool:
                work_s = watch.work_s if watch is not None else None
                if not experiment.comm.move_lanes or train.reduction == "fast" or work_s is None:
                    return False
                self._counts = better_shares(counts, work_s) or counts
                if self._counts != counts:
                    self._tell(f"lanes move: {_listed(counts)} to {_listed(self._counts)}, by rank, since a lane takes "
                               f"{_listed(f'{seconds:.3g}' for seconds in work_s)} s")
                return self._counts != counts

            trainer = Trainer(
                agree=agree, moves=moves, guarded=self._guard.is_due,
                experiment=experiment, num_samples=len(samples), total_steps=steps, model=state.model,
                optimizer=state.optimizer, pace=pace, average=state.average, progress=progress,
                validate=validate,
                log=log, writer=self._writing.checkpoints, wish=self._wish, watch=watch,
                decide=functools.partial(self._decide, group),
            )
            if self._link is not None and self._link.last is not None and progress.step:
                trainer.checkpoint()  # the lost ranks may have taken with them what was not written yet
            try:
                return trainer.run(), trainer
            finally:
                state.exponents = pace.state()

    def _go_back(self, state: State, group: Group) -> None:
        """Collective: bring every rank to the last state that all agreed on."""
        kept = self._guard.kept
        is_whole = kept is not None and kept.is_whole
        if kept is not None and is_whole:  # before anything collective: who is left alone must not go on with the rest
            state.put(kept)
        source, all_whole = whole_source(group, is_whole)
        if not all_whole:
            level(state, group, source)
            self._guard.kept = None
        self._writing.stop()

    def _wish(self) -> Stop:
        if self._link is not None and self._state is not None and self._state.progress.records:
            self._link.step_done()
        if self._stop_wanted():
            return Stop.END
        return Stop.REGROUP if self._link is not None and self._link.someone_waits else Stop.NO

    def _decide(self, group: Group, stop: Stop) -> Stop:
        """Collective: of an elastic run a rank may be asked to end, and the others go on."""
        if stop is not Stop.END or self._link is None:
            return stop
        every, mine = all_end(group, self._stop_wanted, by_hand=self._by_hand)
        self.leaves = mine and not every
        return Stop.END if every else Stop.REGROUP

    def leave(self, link: Link) -> dict[str, Any]:
        """What the others do without this rank is theirs to tell."""
        self._writing.settle()
        link.leave()
        self._tell_user(f"this rank was asked to end; the others go on from step {self.position.step}")
        return {"leads": False, "signal": self._stop_wanted()}

    def _result(self, progress: Progress, trained: Trained, group: Group) -> dict[str, Any]:
        state = self._state
        assert state is not None
        best = progress.best
        result: dict[str, Any] = {
            "run": str(self._run.root),
            "step": progress.step,
            "finished": trained.finished,
            "weights_sha256": weights_sha256(state.model.state_dict()),
            "ema_sha256": weights_sha256(state.average.tensors) if state.average is not None else None,
            "stopped_early": trained.early,
            "best_step": best.step if best.score is not None else None,
            "best_score": best.score,
            "world_size": group.size,
            "signal": 0 if trained.finished else self._stop_wanted() or int(signal.SIGTERM),
        }
        if self._leads and trained.finished:
            with storage_errors("the result could not be written", "the run's checkpoints are whole"):
                replace_file(self._run.result, json.dumps(result, indent=2).encode() + b"\n")
        return {**result, "leads": self._leads}

    def _tell(self, text: str) -> None:
        if self._leads:
            self._tell_user(text)

    def load(self) -> None:
        """Import and compile what the first step wants: while a rank that joins does that, the others wait for it."""
        self._imports.join()  # first: two threads that import what imports each other may see a half of it
        importlib.import_module("torch._dynamo")  # which the first optimizer asks for
        if self._settled.experiment.train.reduction in WORDS:
            build_words(self._settled.experiment.train)
        self._spare_collections()

    def __enter__(self) -> Rank:
        return self

    def __exit__(self, *_: object) -> None:
        gc.unfreeze()
        self._writing.close()


def _listed(values: Iterable[object]) -> str:
    return ", ".join(map(str, values))


def _import_ahead() -> None:
    for module in ("tensorboard.compat.proto.event_pb2", "tensorboard.summary.writer.record_writer", "distrib.metrics"):
        importlib.import_module(module)
