"""`distrib serve`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from distrib.entry import tell
from distrib.errors import counted
from distrib.verbs.answers import Json, answer


def serve(
    bundle: Annotated[Path, typer.Argument(help="A bundle's folder.")],
    host: Annotated[str, typer.Option(help="Address to listen on; other than this machine's own: for a proxy.")
                    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one.")] = 8000,
    runtime: Annotated[str | None, typer.Option(help="One of the bundle's formats.")] = None,
    max_mb: Annotated[float, typer.Option(help="Largest image file.")] = 20.0,
    max_pixels: Annotated[float, typer.Option(help="Largest image, in millions of pixels.")] = 50.0,
    rate: Annotated[float, typer.Option(help="Requests a second of one client; 0 is any number.")] = 20.0,
    queue: Annotated[int, typer.Option(help="Images that may wait.")] = 64,
    allow_host: Annotated[list[str] | None, typer.Option(help="A further name that it is called by.")] = None,
    as_json: Json = False,
) -> None:
    """Serve a bundle over HTTP, with a page to drop images on."""
    from distrib.serve.limits import check_limits

    limits = check_limits(max_mb, max_pixels, rate, queue)
    from distrib.serve.run import run_serve

    def ready(about: dict[str, Any]) -> None:
        answer(about, as_json)
        tell(f"serving {about['bundle']} ({about['runtime']}, {counted(about['threads'], 'thread')}) "
             f"on {about['url']}; Ctrl-C ends it")

    run_serve(bundle, limits, host=host, port=port, runtime=runtime, allow_hosts=allow_host or (), ready=ready,
              tell=tell)
