"""`distrib bench`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from distrib.entry import put, tell
from distrib.errors import ConfigError
from distrib.verbs.answers import Json, answer


def bench(
    bundle: Annotated[Path, typer.Argument(help="A bundle's folder.")],
    batch: Annotated[str, typer.Option(help="Images a call, separated by commas.")] = "1,32",
    seconds: Annotated[float, typer.Option(help="Of each format at each batch size.")] = 5.0,
    threads: Annotated[int | None, typer.Option(help="Images computed at a time [all cores].")] = None,
    as_json: Json = False,
) -> None:
    """Compare the formats of a bundle on this machine: latency, images/s, and labels."""
    from distrib.bench import bench_lines, run_bench

    words = [word.strip() for word in batch.split(",")]
    if not all(word.isdecimal() for word in words):
        raise ConfigError(f"--batch {batch!r} is no list of numbers", "nothing was measured", "write it as 1,32")
    report = run_bench(bundle, batches=[int(word) for word in words], seconds=seconds, threads=threads, tell=tell)
    answer(report, as_json)
    if not as_json:
        for line in bench_lines(report):
            put(line)
