"""`distrib backends`: what ranks can talk over."""

from __future__ import annotations

from typing import Annotated

import typer

from distrib.entry import put, tell
from distrib.verbs.answers import Json, answer


def backends(
    build: Annotated[str | None, typer.Option(metavar="NAME", help="First build and install this one.")] = None,
    as_json: Json = False,
) -> None:
    """List the communication backends: which can be used, and what the others lack."""
    from distrib.comm.show import run_backends

    rows = run_backends(build, tell)
    answer(rows, as_json)
    if not as_json:
        for row in rows:
            put(f"{row['backend']:16}{row['version'] if row['available'] else 'missing: ' + row['missing']}")
