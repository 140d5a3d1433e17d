from __future__ import annotations

import subprocess
import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_the_reference_of_keys_says_what_the_schema_says() -> None:
    written = subprocess.run([sys.executable, DOCS / "experiment_reference.py"], capture_output=True, text=True,
                             check=True, timeout=60).stdout
    assert (DOCS / "experiment.md").read_text() == written
    assert "`train.lanes`" in written
