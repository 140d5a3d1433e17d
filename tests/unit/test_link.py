"""A rank's way into an elastic run."""

from __future__ import annotations

from pathlib import Path

import pytest

from distrib.config import CommConfig
from distrib.elastic.lease import Lease
from distrib.elastic.link import Link
from distrib.errors import CheckpointError
from distrib.rundir import RunDir
from distrib.world import World


def test_a_run_that_is_not_elastic_can_not_be_joined(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    link = Link(World(), CommConfig(), run, Lease(run, "here", 1.0), pytest.fail, 2)
    with pytest.raises(CheckpointError, match=rf"^{tmp_path} is not trained elastically: members.json is missing\. .*"
                                              "Leave --join out"):
        link.join()
