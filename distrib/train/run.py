"""A training run on one rank, from the experiment file to the result."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch

from distrib.comm.group import Group, can_be_elastic
from distrib.config import Experiment
from distrib.elastic.lease import Lease
from distrib.elastic.link import Link
from distrib.elastic.membership import NOTHING_YET
from distrib.errors import DistribError, StorageError, WorldError
from distrib.train.hold import held, stop_requests
from distrib.train.rank import Rank
from distrib.train.settle import Settled
from distrib.train.start import with_start, write_start
from distrib.world import World

Tell = Callable[[str], None]
"""Shows the user one line."""


def run_train(settled: Settled, world: World, tell: Tell, *, join: bool = False) -> dict[str, Any]:
    """Train, or go on where the run stopped. Collective over the world's ranks.

    With ``join``, this process becomes a further rank of a run that is on its way. Returns what `train --json` prints,
    the same on all ranks, with "leads" true on one. Raises any DistribError.
    """
    run, train, comm = settled.run, settled.experiment.train, settled.experiment.comm
    torch.set_num_threads(train.threads)
    settled, start = with_start(settled, tell if world.is_first else _silence)
    elastic = join or (world.elastic and world.size > 1 and train.reduction != "fast" and can_be_elastic(comm.backend))
    lease = Lease(run, world.host, comm.silence_s)
    with ExitStack() as stack:
        stop_wanted = stack.enter_context(stop_requests())
        if world.is_first and not join:
            stack.enter_context(held(lease, run, tell))
            if start is not None:
                write_start(run, start)
        else:
            stack.callback(lease.release)
        if not elastic:
            tell = tell if world.is_first else _silence
            _advise_threads(settled.experiment, tell)
            with Group(world, comm.backend, comm.timeout_s) as group:
                rank = stack.enter_context(Rank(settled, stop_wanted, tell, lease, None))
                result = rank.train(group)
                assert result is not None
                return result
        link = stack.enter_context(Link(world, comm, run, lease, tell, train.lanes))
        rank = Rank(settled, stop_wanted, tell, lease, link, by_hand=join and not world.join)
        return _train_elastically(rank, link, join=join)


def _train_elastically(rank: Rank, link: Link, *, join: bool) -> dict[str, Any]:
    """Train in one view after another, until the run ends or this rank may not go on."""
    with rank:
        if join:
            rank.load()  # now, while the others need not wait
        try:
            group = link.join() if join else link.meet()
        except StorageError as error:  # of the run's folder: whoever leads next would meet it too
            link.tell_fault(error.one_line())
            raise
        while True:
            try:
                with group:
                    result = rank.train(group)
                if result is not None:
                    return result
                if rank.leaves:
                    return rank.leave(link)
            except WorldError:  # a peer is lost: whether that ends the run shows when the others are asked
                gc.collect()  # an old DDP must not stay tied to the parameters
            except DistribError as error:
                if not join or rank.position != NOTHING_YET:  # what keeps a newcomer out is not the others' business
                    link.tell_fault(error.one_line())
                raise
            group = link.regroup(rank.position)


def _silence(_: str) -> None:
    """Ranks other than the leader say nothing."""


def _advise_threads(experiment: Experiment, tell: Tell) -> None:
    threads, cores = experiment.train.threads, len(os.sched_getaffinity(0))
    if cores > threads:
        tell(f"note: this rank may use {cores} cores and computes with train.threads = {threads}; more ranks use the "
             f"others with the same result (up to {experiment.train.lanes}; `launch run` starts them), more threads "
             "do with other last bits")
