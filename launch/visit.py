"""One rank of the doctor's job: tells about its node, then becomes the probe.

    python -m launch.visit FOLDER BACKEND

The probe needs torch, this does not: a node without it still tells what else it is.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import NoReturn

from launch.facts import examine_machine


def main(words: list[str]) -> NoReturn:
    folder, backend = Path(words[0]), words[1]
    path = folder / f"machine-{os.environ.get('RANK', '0')}.json"
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(examine_machine(folder).model_dump_json())
    temporary.replace(path)
    os.execv(sys.executable, [sys.executable, "-m", "distrib.probe", str(folder), backend])  # noqa: S606


if __name__ == "__main__":
    main(sys.argv[1:])
