"""``launch``: start one command as many ranks. Heavy things are imported when a verb needs them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from distrib.entry import put, report, run_app, tell, version_option
from distrib.errors import ConfigError

if TYPE_CHECKING:
    from launch.plan import Plan

EPILOG = """Exit codes: 0 done; of `run`, that of the first rank that failed, or 130 and 143 if Ctrl-C or SIGTERM
stopped it; 2 bad input, which one line on stderr names; of `doctor`, 1 if something is wrong.

Documents: README.md and docs/ of the source, docs/clusters.md above all; docs/cluster-file.md has the keys of a cluster
file, `launch VERB --help` the options of a verb."""

app = typer.Typer(
    name="launch", help="Start one command as many ranks, each on its own cores.", epilog=EPILOG, rich_markup_mode=None,
    pretty_exceptions_enable=False, add_completion=False, context_settings={"help_option_names": ["-h", "--help"]},
)

ClusterFile = Annotated[Path, typer.Argument(metavar="CLUSTER.yaml", help="The cluster file.")]
Command = Annotated[list[str], typer.Argument(metavar="-- COMMAND ...", help="Program and arguments of every rank.")]
Nodes = Annotated[int | None, typer.Option(min=1, help="Number of machines; the local launcher has one.")]
Ranks = Annotated[int | None, typer.Option(min=1, help="Number of ranks in all, instead of ranks_per_node.")]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the file.")]
Elastic = Annotated[bool | None, typer.Option(
    "--elastic/--no-elastic", help="Whether the others go on when a rank is lost. [default: the file's `elastic`]")]
Logs = Annotated[Path | None, typer.Option(
    metavar="DIR", help="Keep the output of ranks 1 and up here. [default: a temporary folder, kept on failure]")]
AllOutput = Annotated[bool, typer.Option(
    "--all-output", help="Show the output of ranks 1 and up on stderr too, each line with its rank.")]
Job = Annotated[Path | None, typer.Option(
    metavar="DIR", help="Folder of a job on other hosts, which all of them share. [default: a new one in launch-jobs]")]
JobFolder = Annotated[Path, typer.Argument(metavar="JOB", help="A job's folder, as `launch submit` printed it.")]
RankOption = Annotated[int | None, typer.Option("--rank", min=0, help="Whose output. [default: 0]")]
Every = Annotated[bool, typer.Option("--all", help="Of all ranks, and of the launcher.")]
Tail = Annotated[int | None, typer.Option(min=0, metavar="LINES", help="Only so many last lines of each log.")]
Follow = Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job ends.")]
Backend = Annotated[str, typer.Option(help="The all-reduce to measure, as `comm.backend` of an experiment.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


Array = Annotated[str | None, typer.Option(
    metavar="NUMBERS", help="Slurm: one task for each, such as 0-9%2; ranks see SLURM_ARRAY_TASK_ID.")]
After = Annotated[list[str] | None, typer.Option(metavar="JOB", help="Slurm: start when this job has succeeded.")]


@app.callback()
def _verbs(version: Annotated[bool, version_option("launch")] = False) -> None:
    pass


@app.command()
def run(
    cluster: ClusterFile,
    command: Command,
    nodes: Nodes = None,
    ranks: Ranks = None,
    override: Set = None,
    elastic: Elastic = None,
    logs: Logs = None,
    all_output: AllOutput = False,
    job: Job = None,
) -> int:
    """Run COMMAND as ranks and wait for its end.

    Rank 0's output is shown as it is. The exit code is 0, or that of the first rank that failed. Ctrl-C and SIGTERM
    are passed on, so that ranks can save; a second Ctrl-C kills them.
    """
    from launch.local import Options

    try:
        plan = _plan(cluster, command, nodes, ranks, override, elastic)
        code: int = _launcher(plan.cluster.launcher).run_plan(plan, Options(logs, all_output, job))
    except KeyboardInterrupt:  # while ranks run, it is theirs
        tell("launch: interrupted, while no rank was running")
        raise
    return code


@app.command()
def plan(
    cluster: ClusterFile,
    command: Command,
    nodes: Nodes = None,
    ranks: Ranks = None,
    override: Set = None,
    elastic: Elastic = None,
    as_json: AsJson = False,
) -> int:
    """Show what `launch run` would start, where and with which environment; start nothing."""
    made = _plan(cluster, command, nodes, ranks, override, elastic)
    if made.cluster.launcher != "local":
        made = replace(made, commands=_launcher(made.cluster.launcher).plan_commands(made))
    if made.cluster.launcher == "slurm":
        from launch.sbatch import plan_script

        made = replace(made, script=plan_script(made, Path("JOB")))
    if as_json:
        import json

        put(json.dumps(made.to_json(), indent=2))
    else:
        from launch.show import show_plan

        show_plan(made)
    return 0


@app.command()
def submit(
    cluster: ClusterFile,
    command: Command,
    nodes: Nodes = None,
    ranks: Ranks = None,
    override: Set = None,
    elastic: Elastic = None,
    job: Job = None,
    array: Array = None,
    after: After = None,
    as_json: AsJson = False,
) -> int:
    """Hand COMMAND to Slurm, or run it in the background by mpirun or on this machine; prints the job's folder."""
    from launch.jobs import submit_plan

    return submit_plan(_plan(cluster, command, nodes, ranks, override, elastic), job, as_json, array, after or ())


@app.command()
def status(job: JobFolder, as_json: AsJson = False) -> int:
    """Show how a job is doing: waiting, running, ended; each rank's host, cores and ending."""
    from launch.jobs import show_status

    return show_status(job, as_json)


@app.command()
def logs(
    job: JobFolder, rank: RankOption = None, every: Every = False, follow: Follow = False, tail: Tail = None,
) -> int:
    """Print a rank's output, or that of all with the rank before each line."""
    from launch.logs import show_logs

    return show_logs(job, rank, every, follow, tail)


@app.command()
def cancel(job: JobFolder) -> int:
    """Ask a job's ranks to save and end; they are killed after stop_grace_s."""
    from launch.jobs import cancel_job

    return cancel_job(job)


@app.command()
def doctor(
    cluster: ClusterFile,
    nodes: Nodes = None,
    override: Set = None,
    job: Job = None,
    backend: Backend = "auto",
    as_json: AsJson = False,
) -> int:
    """Examine the nodes, and the network between them, before a training does; about a minute.

    The exit code is 0 if nothing is wrong, 1 if something is, 2 if nothing could be examined.
    """
    from launch.doctor import run_doctor

    return run_doctor(cluster, nodes, override or (), job, backend, as_json)


@app.command(hidden=True)
def batch(job: JobFolder) -> int:
    """Run a submitted job; for Slurm's script and for `launch submit`."""
    from launch.job import JobFolder as Folder

    folder = Folder(job)
    code: int = _launcher(folder.job().launcher).run_job(folder)
    return code


def _plan(cluster: Path, command: Sequence[str], nodes: int | None, ranks: int | None,
          overrides: Sequence[str] | None, elastic: bool | None) -> Plan:
    from launch.cluster import load_cluster
    from launch.plan import build_plan, build_remote_plan

    own = () if elastic is None else (f"elastic={str(elastic).lower()}",)
    wishes = load_cluster(cluster, (*(overrides or ()), *own))
    if wishes.launcher != "local":
        return build_remote_plan(wishes, command, num_nodes=nodes, num_ranks=ranks)
    import socket

    from launch.topology import read_topology

    return build_plan(wishes, read_topology(), command, host=socket.gethostname(), num_nodes=nodes, num_ranks=ranks)


def _launcher(name: str) -> Any:
    from importlib import import_module

    from launch.cluster import LAUNCHERS

    return import_module(LAUNCHERS[name])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words and words[0] in ("run", "plan", "submit") and not {"--", "--help", "-h"} & set(words):
        # Without it, the command's own options would be taken for the launcher's.
        error = ConfigError(f"launch {words[0]} has no `--` before the command", "nothing was started",
                            f"write: launch {words[0]} CLUSTER.yaml -- COMMAND")
        report(error)
        return error.exit_code
    return run_app(app, "launch", words)


if __name__ == "__main__":
    sys.exit(main())
