"""`tests.rig.slowed`, but at its end it tells what it imported after it had asked others to let it in.

    python -m tests.rig.late train ...
"""

from __future__ import annotations

import sys

from distrib.comm.group import Group
from distrib.elastic.link import Link
from tests.rig.slowed import slowed_main

TELLS = "imported late:"


def tell_late_imports() -> None:
    join, before = Link.join, set[str]()

    def noted(link: Link) -> Group:
        before.update(sys.modules)
        return join(link)

    setattr(Link, "join", noted)  # noqa: B010
    try:
        sys.exit(slowed_main())
    finally:
        if before:
            print(TELLS, *sorted(set(sys.modules) - before), file=sys.stderr)


if __name__ == "__main__":
    tell_late_imports()
