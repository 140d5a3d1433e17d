"""`distrib promote`: the gate into a registry of bundles, its list, and the way back."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from distrib.entry import put, tell
from distrib.errors import ConfigError, counted, printable
from distrib.verbs.answers import Json, answer


def promote(
    candidate: Annotated[Path | None, typer.Argument(help="The bundle to promote.")] = None,
    registry: Annotated[Path | None, typer.Option(help="The registry's folder; made by the first promotion.")] = None,
    data: Annotated[Path | None, typer.Option(help="The dataset that both bundles are judged on.")] = None,
    split: Annotated[str, typer.Option(help="The frozen split of it: test, or val.")] = "test",
    metric: Annotated[str | None, typer.Option(help="What decides [evaluate.metric of the candidate].")] = None,
    margin: Annotated[float, typer.Option(help="Loss of the metric that is tolerated.")] = 0.0,
    strict: Annotated[bool, typer.Option("--strict", help="Refuse, too, if the interval reaches below that.")] = False,
    bootstrap: Annotated[int, typer.Option(help="Resamples for the intervals.")] = 2000,
    force: Annotated[bool, typer.Option("--force", help="Promote in spite of a regression; needs --reason.")] = False,
    reason: Annotated[str, typer.Option(help="For the registry.")] = "",
    new_test: Annotated[bool, typer.Option("--new-test", help="Judge both on another split than before.")] = False,
    trained_on: Annotated[list[Path] | None, typer.Option(help="Where a dataset that it was trained on lies.")] = None,
    rollback: Annotated[bool, typer.Option("--rollback", help="Make the promotion before current again.")] = False,
    to: Annotated[int | None, typer.Option(help="Of a rollback: the entry to go back to.")] = None,
    show: Annotated[bool, typer.Option("--list", help="List all that was promoted.")] = False,
    as_json: Json = False,
) -> None:
    """Compare a bundle with the current one on a frozen test, and make it current unless it is worse (exit code 1)."""
    if registry is None:
        raise ConfigError("--registry is missing", "nothing was done", "name the registry's folder")
    if show + rollback + (candidate is not None) != 1:
        raise ConfigError("one of CANDIDATE, --rollback and --list is needed", "nothing was done", "give one of them")
    if to is not None and not rollback:
        raise ConfigError("--to is for --rollback", "nothing was done", "leave it out, or give --rollback")
    from distrib.registry.run import Terms, describe, run_list, run_promote, run_rollback

    if show:
        listed = run_list(registry)
        answer(listed, as_json)
        if not as_json:
            for line in describe(listed["entries"], listed["current"]):
                put(printable(line))
        return
    if rollback:
        result = run_rollback(registry, to, reason)
        answer(result, as_json)
        tell(f"entry {result['entry']}: the bundle of entry {result['restores']} is current again")
        return
    assert candidate is not None
    if data is None:
        raise ConfigError("--data is missing", "it was not promoted", "name the dataset with the frozen test split")
    terms = Terms(split=split, metric=metric, margin=margin, strict=strict, resamples=bootstrap, force=force,
                  reason=reason, new_test=new_test, trained_on=trained_on or ())
    result = run_promote(candidate, registry, data, terms, tell)
    answer(result, as_json)
    one = result["metrics"][result["metric"]]
    if not result["promoted"]:
        tell(f"refused: {result['refused']}. The current bundle stays. Promote it all the same with --force --reason.")
        raise typer.Exit(1)
    by = f", {one['difference']:+.4f} over the one before" if one["difference"] is not None else ""
    sign = "+" if by else ""  # of a difference
    if one["low"] is not None:
        by += f" (95% interval {one['low']:{sign}.4f} to {one['high']:{sign}.4f})"
    forced = f"; forced, though {result['refused']}" if result["forced"] else ""
    tell(f"entry {result['entry']} is current: {result['metric']} {one['candidate']:.4f}{by} on "
         f"{counted(result['num_samples'], 'sample')} of {counted(result['num_groups'], 'group')}{forced}")
