"""What one rank writes of a run: its log and checkpoints while it leads, else its host's part of a checkpoint."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from distrib.checkpoint_parts import PartWriter, Writers, remove_parts
from distrib.checkpoint_writer import CheckpointWriter
from distrib.comm.group import Group
from distrib.config import Experiment
from distrib.data.manifest import DatasetRecord, Manifest
from distrib.durable import replace_file
from distrib.elastic.lease import Lease
from distrib.elastic.link import Link
from distrib.errors import counted, storage_errors
from distrib.rundir import RunDir
from distrib.train import ipex
from distrib.train.agree import warn_of_other_processors
from distrib.train.environment import describe_environment, record_environment
from distrib.train.log import RunLog
from distrib.train.places import places_of

Tell = Callable[[str], None]


class Writing:
    """A rank's log and checkpoints, to be closed. ``tell`` reaches the user while this rank leads."""

    def __init__(self, run: RunDir, lease: Lease, link: Link | None, tell: Tell) -> None:
        self._run, self._lease, self._link, self._tell = run, lease, link, tell
        self._environment: dict[str, Any] = {}
        self._log: RunLog | None = None
        self._writer: CheckpointWriter | None = None
        self._part: PartWriter | None = None
        self._leads = False
        self._written = ExitStack()

    @property
    def log(self) -> RunLog | None:
        """The leader's; None on others."""
        return self._log if self._leads else None

    @property
    def checkpoints(self) -> CheckpointWriter | PartWriter | None:
        """What takes this rank's share of a checkpoint; None if it has none."""
        return self._writer if self._leads else self._part

    def begin(self, experiment: Experiment, manifest: Manifest, group: Group, step: int, total_steps: int, *,
              compares: bool) -> None:
        """Collective, after ``step``. The leader opens the log and the checkpoints, if it did not lead before.

        ``compares``: whether ranks compare their states before a checkpoint.
        """
        self._leads = group.world.is_first
        if not self._environment or (self._link is not None and self._link.has_new_members):
            train = experiment.train
            self._environment = describe_environment(group.world, manifest.sha256,
                                                     [ipex.PACKAGE] if train.ipex else [])
            warn_of_other_processors(self._environment, group, self._tell)
        writers = self._share_writing(group, compares)
        self._part = PartWriter(self._run, writers) if writers.number > 0 else None
        if self._writer is not None:
            self._writer.writers = writers
        if not self._leads:
            return
        if self._log is not None:
            self._log_members(self._log, step)
            return
        _begin(self._run, experiment, manifest, self._tell)
        for difference in record_environment(self._run, self._environment, step):
            self._tell(f"warning: the last bits may differ from an undisturbed run's: {difference}")
        self._log = self._written.enter_context(RunLog(self._run, first_step=step, total_steps=total_steps))
        self._log_members(self._log, step)
        self._writer = CheckpointWriter(self._run, experiment.checkpoint.keep_last, self._log.note,
                                        permitted=self._lease.is_ours, writers=writers)

    def _log_members(self, log: RunLog, step: int) -> None:
        """Who was lost and who joined before the step after this one."""
        while self._link is not None and self._link.changes:
            log.event("members", step, **self._link.changes.pop(0))

    def _share_writing(self, group: Group, compares: bool) -> Writers:
        """Collective: the first rank of each host writes, the leader as number 0; other ranks get a number below 0.

        Without the guard the leader alone does: nothing makes sure then that the parts are of one state.
        """
        key = group.broadcast_bytes(secrets.token_bytes(8) if self._leads else None).hex()
        places = places_of(group)
        ranks = [0, *(rank for rank in range(1, group.size) if places[rank].node == rank and compares)]
        return Writers(len(ranks), ranks.index(group.rank) if group.rank in ranks else -1, key,
                       tuple(places[rank].host for rank in ranks))

    def settle(self) -> None:
        """Wait until what was begun is written."""
        if self._writer is not None:
            self._writer.settle()

    def stop(self) -> None:
        """The run goes back: the log is opened again where it goes on."""
        self.settle()
        self._written.close()
        self._log = self._writer = None

    def remove_late_parts(self) -> None:
        """Parts of checkpoints from hosts that were late; on the leader, at the end."""
        if self._leads:
            remove_parts(self._run)

    def close(self) -> None:
        """Flush and close the log."""
        self._written.close()


def _begin(run: RunDir, experiment: Experiment, manifest: Manifest, tell: Tell) -> None:
    """Write what the run is, unless it goes on; only on rank 0, when all is known to fit together."""
    if run.experiment.exists():
        return
    with storage_errors(f"the run folder {run.root} could not be written", "nothing was started"):
        record = DatasetRecord(classes=manifest.classes, dataset_sha256=manifest.sha256)
        replace_file(run.dataset, record.to_bytes())
        replace_file(run.experiment, experiment.to_bytes())
    train = experiment.train
    tell(f"run {run.root}: {experiment.model.name} in {train.precision}, {counted(train.lanes, 'lane')} of "
         f"{counted(train.lane_batch, 'image')} a step, {train.reduction} sums")
