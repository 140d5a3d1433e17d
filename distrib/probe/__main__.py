"""``python -m distrib.probe FOLDER``: one rank of the doctor's job."""

import os
import sys
from pathlib import Path

from distrib.probe.folder import ProbeFolder


def main(words: list[str]) -> int:
    """Exit code 0 always, once the folder is known: what went wrong is told in the probe's file."""
    folder = ProbeFolder(Path(words[0]), int(os.environ.get("RANK", "0")))
    try:
        from distrib.probe.run import run_probe
    except ImportError as error:
        folder.put({"error": f"a package is missing: {error}"})
        return 0
    run_probe(folder, words[1] if len(words) > 1 else "auto")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
