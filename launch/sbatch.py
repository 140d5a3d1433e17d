"""Slurm's side of a job: its sbatch text, its submission, what has become of it, its end.

The text only asks for nodes and execs ``launch batch JOB``; all else is in the job's folder. No shell reads the
#SBATCH lines: Slurm itself knows quotes, and a backslash within them.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from distrib.errors import ConfigError, MissingPartError, WorldError, printable, storage_errors
from launch.cluster import Cluster
from launch.job import JobFolder
from launch.plan import Plan

ASK_S = 60.0
MAX_TASKS = 10000
ARRAY = re.compile(r"\d+(-\d+(:\d+)?)?(,\d+(-\d+(:\d+)?)?)*(%\d+)?", re.ASCII)
OVER = re.compile(r"SLURM_(?!CONF$|CLUSTERS$).*|SBATCH_(SIGNAL|REQUEUE|NO_REQUEUE|OPEN_MODE|EXPORT|ARRAY_INX|JOB_NAME"
                  r"|NO_KILL|EXCLUSIVE|GET_USER_ENV|WAIT|HINT|DISTRIBUTION|OVERCOMMIT)")
"""Variables that would overrule what the script says, or tell of the job in which `launch submit` runs."""
SEPARATOR = re.compile(r"(het|pack)(job)", re.IGNORECASE)
"""What Slurm blanks out wherever it stands in a #SBATCH line; a backslash amid it hinders that."""
ENDED = frozenset({"COMPLETED", "CANCELLED", "FAILED", "TIMEOUT", "NODE_FAIL", "BOOT_FAIL", "DEADLINE", "OUT_OF_MEMORY",
                   "REVOKED", "PREEMPTED"})


class RefusedError(WorldError):
    """Slurm did not take a job."""


def resources(cluster: Cluster, name: str, num_nodes: int, ranks_per_node: int) -> list[str]:
    """What is asked of Slurm for ``num_nodes`` nodes that compute, as options of sbatch and salloc. Pure.

    Raises ConfigError for a name that is no text on one line, and for a share of a node of unknown size.
    """
    wishes = cluster.slurm
    if not name.isprintable() or not name.strip():
        raise ConfigError(f"name: {name!r} must be text on one line", "nothing was started", "choose another name")
    words = [f"--job-name={name}", f"--nodes={num_nodes + wishes.spares}"]
    if wishes.exclusive:
        words += ["--exclusive", "--mem=0"]  # exclusive gives all cores, but only --mem=0 gives all memory
    elif cluster.threads_per_rank is None:
        raise ConfigError("slurm.exclusive is false, but threads_per_rank is not given",
                          "nothing was started", "write threads_per_rank, or exclusive: true for whole nodes")
    else:
        per_core = cluster.node.threads_per_core if cluster.node else 1
        cpus = (cluster.threads_per_rank * (1 if cluster.hyper_threads else per_core) + cluster.comm_cores * per_core)
        words += [f"--ntasks-per-node={ranks_per_node}", f"--cpus-per-task={cpus}"]
    if wishes.spares or cluster.elastic:
        words.append("--no-kill")
    for key in ("partition", "account", "qos", "constraint", "time"):
        if (value := getattr(wishes, key)) is not None:
            words.append(f"--{key}={value}")
    return words


def script(cluster: Cluster, folder: Path, name: str, num_nodes: int, ranks_per_node: int, *, array: str | None = None,
           after: Sequence[str] = (), python: str = sys.executable) -> str:
    """The sbatch text of the job in ``folder``. Pure.

    ``array`` is a list of task numbers, as sbatch takes it; ``after`` are numbers of jobs that must succeed before.
    Raises ConfigError for words that sbatch's lines can not hold.
    """
    where = str(folder)
    if not where.isprintable() or "\\" in where:  # a backslash would switch off %% and %a
        raise ConfigError(f"the job folder {printable(where)} has a line break, a control character or a backslash "
                          "in its name", "nothing was submitted", "choose another with --job")
    words = [
        *resources(cluster, name, num_nodes, ranks_per_node), "--requeue" if cluster.slurm.requeue else "--no-requeue",
        f"--signal=B:USR1@{cluster.slurm.stop_signal_s}", "--open-mode=append",
        f"--output={where.replace('%', '%%')}{'/task-%a' if array else ''}/log/launch.log", "--export=ALL",
        *([f"--array={array}"] if array else []), *([f"--dependency=afterok:{':'.join(after)}"] if after else []),
        *cluster.slurm.options]
    lines = ["#!/bin/bash", *(f"#SBATCH {_kept(word)}" for word in words), "",
             "# exec: Slurm signals this very process, and `launch batch` passes the signal on to the ranks.",
             f"exec {shlex.quote(python)} -m launch batch {shlex.quote(where)}", ""]
    return "\n".join(lines)


def plan_script(plan: Plan, folder: Path, array: str | None = None, after: Sequence[str] = ()) -> str:
    """The sbatch text of a plan's job. Pure. Raises ConfigError."""
    counts = plan.layout()[1]
    return script(plan.cluster, folder, plan.cluster.name, len(counts), max(counts), array=array, after=after)


def _kept(word: str) -> str:
    """A word as Slurm's reader of #SBATCH lines gives it back."""
    if not word.isprintable():
        raise ConfigError(f"slurm.options: {word!r} must be text on one line", "nothing was submitted", "write it so")
    if re.fullmatch(r"[A-Za-z0-9_@%+=:,./-]*", word) and not SEPARATOR.search(word):
        return word
    escaped = re.sub(r'(["\\])', r"\\\1", word)
    return '"' + SEPARATOR.sub(r"\1\\\2", escaped) + '"'


def array_tasks(text: str) -> list[int]:
    """The task numbers of an array such as ``0-3,8%2``. Pure. Raises ConfigError."""
    tasks: set[int] = set()
    if not ARRAY.fullmatch(text):
        raise ConfigError(f"--array {printable(text)} is no list of numbers", "nothing was submitted",
                          "write for example --array 0-3,8")
    for part in text.partition("%")[0].split(","):
        first, _, rest = part.partition("-")
        last, _, step = rest.partition(":")
        span = range(int(first), int(last or first) + 1, max(1, int(step or 1)))
        if len(span) > MAX_TASKS:
            raise ConfigError(f"--array {text} has more than {MAX_TASKS} tasks", "nothing was submitted",
                              "submit fewer")
        tasks.update(span)
    if not tasks:
        raise ConfigError(f"--array {text} has no task", "nothing was submitted", "write for example --array 0-3,8")
    return sorted(tasks)


def earlier_jobs(words: Sequence[str]) -> list[str]:
    """Slurm's numbers of jobs that are given as such, or by their folders. Raises ConfigError."""
    numbers = []
    for word in words:
        if re.fullmatch(r"\d+(_\d+)?", word, re.ASCII):
            numbers.append(word)
            continue
        record = JobFolder(Path(word)).submitted_record()
        if record is None or record.get("launcher") != "slurm":
            raise ConfigError(f"--after {printable(word)} is neither a number nor the folder of a job of Slurm's",
                              "nothing was submitted", "give what `launch submit` printed")
        numbers.append(job_number(record))
    return numbers


def submit(plan: Plan, folder: JobFolder, tasks: Sequence[int] = (), array: str | None = None,
           after: Sequence[str] = ()) -> dict[str, Any]:
    """Hand a job's folder to Slurm; the record of it. Each task of an array gets a folder in the job's, task-N.

    Raises ConfigError for what the script can not hold, MissingPartError without Slurm, RefusedError if Slurm refuses,
    WorldError if it gives no answer, and may have taken the job.
    """
    text = plan_script(plan, folder.path, array, after)
    folders = {task: JobFolder(folder.path / f"task-{task}") for task in tasks}
    for task in folders.values():
        task.create(folder.job())
    with storage_errors(f"{folder.script} could not be written", "nothing was submitted"):
        folder.script.write_text(text)
    environment = {name: value for name, value in os.environ.items() if not OVER.fullmatch(name)}
    code, out, words = ask("sbatch", "--parsable", str(folder.script), environment=environment)
    found = re.search(r"^(\d+)(;.*)?$", out, re.MULTILINE)
    if code or not found:
        kind = RefusedError if code else WorldError
        raise kind(f"Slurm refused the job: {words or out or f'sbatch ended with exit code {code}'}",
                   "nothing was submitted", "check slurm: in the cluster file, and --nodes")
    record = {"launcher": "slurm", "slurm_job": found[1]}
    for number, task in folders.items():
        task.write(task.submitted, {**record, "slurm_job": f"{found[1]}_{number}"})
    return record


def job_number(record: dict[str, Any]) -> str:
    """Slurm's number of a submitted job. Raises WorldError for a damaged record."""
    number = str(record.get("slurm_job"))
    if not re.fullmatch(r"\d+(_\d+)?", number, re.ASCII):
        raise WorldError(f"{printable(number)} is no number of a job of Slurm's", "nothing was asked of Slurm",
                         "submit the job again")
    return number


def state(folder: JobFolder, record: dict[str, Any]) -> dict[str, Any]:
    """{"state", "running": whether it may yet go on, "reason"}: in Slurm's words, or in the folder's own."""
    code, out, words = ask("squeue", "--noheader", "--states=all", f"--jobs={job_number(record)}", "--format=%T|%r")
    if code and "Invalid job id" not in words:
        return {"state": "unknown", "running": True, "reason": words}
    counts: dict[str, int] = {}
    reasons: dict[str, None] = {}
    for line in out.splitlines():
        said, _, reason = line.strip().partition("|")
        counts[said] = counts.get(said, 0) + 1
        if reason not in ("", "None"):
            reasons[reason] = None
    if not counts:
        return {"state": "ended", "running": False, "reason": _remembered(folder)}
    names = {said: "waiting" if said == "PENDING" else said.lower() for said in counts}
    several = sum(counts.values()) > 1
    return {"state": ", ".join(f"{count} {names[said]}" if several else names[said] for said, count in counts.items()),
            "running": not ENDED.issuperset(counts), "reason": "; ".join(reasons)}


def _remembered(folder: JobFolder) -> str:
    number = folder.last_attempt()
    said = "Slurm has forgotten the job; "
    if not number:
        return said + "no rank of it was started"
    reports, size = folder.reports(number), folder.start(number).size
    codes = {report.code for report in reports.values()}
    if len(reports) == size and codes == {0}:
        return said + "its ranks succeeded"
    if len(reports) < size or None in codes:
        return said + "some ranks left no last word"
    return said + "its ranks did not all succeed"


def cancel(record: dict[str, Any]) -> None:
    """Have the ranks save and end; what waits is taken back. Raises WorldError if Slurm refuses."""
    number = job_number(record)
    waiting = ask("scancel", "--state=PENDING", number)
    # To the batch process alone: it tells the ranks, waits for them, and kills those that are late.
    running = ask("scancel", "--state=RUNNING", "--batch", "--signal=TERM", number)
    for code, _, words in (waiting, running):
        if code and "Invalid job id" not in words and "already completed" not in words:
            raise WorldError(f"Slurm did not cancel job {number}: {words}", "it may go on", "try scancel by hand")


def ask(*argv: str, environment: dict[str, str] | None = None) -> tuple[int, str, str]:
    """(exit code, stdout, stderr on one line) of one of Slurm's commands. Raises MissingPartError, WorldError."""
    if shutil.which(argv[0]) is None:
        raise MissingPartError(f"{argv[0]} is not on PATH", "nothing was asked of Slurm",
                               "run this on a login node of the cluster, or load the site's Slurm module")
    try:
        done = subprocess.run(argv, capture_output=True, text=True, errors="replace", timeout=ASK_S, check=False,
                              stdin=subprocess.DEVNULL, env=environment)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise WorldError(f"{argv[0]} gave no answer: {error}", "nothing was asked of Slurm",
                         "check Slurm's controller with `scontrol ping`") from error
    lines = (line.removeprefix(f"{argv[0]}: ").removeprefix("error: ") for line in done.stderr.splitlines())
    return done.returncode, done.stdout, printable("; ".join(filter(None, lines)))
