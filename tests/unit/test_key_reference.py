from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.mark.parametrize(("kind", "file", "key"), [("experiment", "experiment.md", "train.lanes"),
                                                  ("cluster", "cluster-file.md", "slurm.spares"),
                                                  ("cluster", "cluster-file.md", "hosts[].ranks_per_node"),
                                                  ("cluster", "cluster-file.md", "hosts[].node.cores_per_socket")])
def test_the_reference_of_keys_says_what_the_schema_says(kind: str, file: str, key: str) -> None:
    written = subprocess.run([sys.executable, DOCS / "key_reference.py", kind], capture_output=True, text=True,
                             check=True, timeout=60).stdout
    assert (DOCS / file).read_text() == written
    assert f"`{key}`" in written
