"""``launch``: start one command as many ranks. Heavy things are imported when a verb needs them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from distrib.entry import put, report, run_app
from distrib.errors import ConfigError

if TYPE_CHECKING:
    from launch.plan import Plan

app = typer.Typer(
    name="launch", help="Start one command as many ranks, each on its own cores.", rich_markup_mode=None,
    pretty_exceptions_enable=False, add_completion=False, context_settings={"help_option_names": ["-h", "--help"]},
)

ClusterFile = Annotated[Path, typer.Argument(metavar="CLUSTER.yaml", help="The cluster file.")]
Command = Annotated[list[str], typer.Argument(metavar="-- COMMAND ...", help="Program and arguments of every rank.")]
Nodes = Annotated[int | None, typer.Option(min=1, help="Number of machines; the local launcher has one.")]
Ranks = Annotated[int | None, typer.Option(min=1, help="Number of ranks in all, instead of ranks_per_node.")]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the file.")]
Logs = Annotated[Path | None, typer.Option(
    metavar="DIR", help="Keep the output of ranks 1 and up here. [default: a temporary folder, kept on failure]")]
AllOutput = Annotated[bool, typer.Option(
    "--all-output", help="Show the output of ranks 1 and up on stderr too, each line with its rank.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


@app.callback()
def _verbs() -> None:
    pass


@app.command()
def run(
    cluster: ClusterFile,
    command: Command,
    nodes: Nodes = None,
    ranks: Ranks = None,
    override: Set = None,
    logs: Logs = None,
    all_output: AllOutput = False,
) -> int:
    """Run COMMAND as ranks and wait for its end.

    Rank 0's output is shown as it is. The exit code is 0, or that of the first rank that failed. Ctrl-C and SIGTERM
    are passed on, so that ranks can save; a second Ctrl-C kills them.
    """
    plan = _plan(cluster, command, nodes, ranks, override)
    from importlib import import_module

    from launch.cluster import LAUNCHERS
    from launch.local import Options

    module, _, attribute = LAUNCHERS[plan.cluster.launcher].partition(":")
    start: Callable[[Plan, Options], int] = getattr(import_module(module), attribute)
    return start(plan, Options(logs, all_output))


@app.command()
def plan(
    cluster: ClusterFile,
    command: Command,
    nodes: Nodes = None,
    ranks: Ranks = None,
    override: Set = None,
    as_json: AsJson = False,
) -> int:
    """Show what `launch run` would start, where and with which environment; start nothing."""
    made = _plan(cluster, command, nodes, ranks, override)
    if as_json:
        import json

        put(json.dumps(made.to_json(), indent=2))
    else:
        from launch.show import show_plan

        show_plan(made)
    return 0


def _plan(cluster: Path, command: Sequence[str], nodes: int | None, ranks: int | None,
          overrides: Sequence[str] | None) -> Plan:
    import socket

    from launch.cluster import load_cluster
    from launch.plan import build_plan
    from launch.topology import read_topology

    wishes = load_cluster(cluster, overrides or ())
    return build_plan(wishes, read_topology(), command, host=socket.gethostname(), num_nodes=nodes, num_ranks=ranks)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words and words[0] in ("run", "plan") and not {"--", "--help", "-h"} & set(words):
        # Without it, the command's own options would be taken for the launcher's.
        error = ConfigError(f"launch {words[0]} has no `--` before the command", "nothing was started",
                            f"write: launch {words[0]} CLUSTER.yaml -- COMMAND")
        report(error)
        return error.exit_code
    return run_app(app, "launch", words)


if __name__ == "__main__":
    sys.exit(main())
