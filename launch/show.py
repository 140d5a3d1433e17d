"""A plan as tables for people."""

from __future__ import annotations

import shlex
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from launch.plan import Plan
from launch.topology import format_list


def show_plan(plan: Plan) -> None:
    """Print a plan on stdout."""
    console = Console(highlight=False, soft_wrap=True)
    console.print(Text(f"{plan.cluster.name}: {len(plan.ranks)} rank(s), launcher {plan.cluster.launcher}"))
    console.print(Text(f"command: {shlex.join(plan.command)}"))
    console.print(Text(f"allocator: {plan.allocator.remark}"))
    table = Table("rank", "host", "CPUs", "threads", "communication", "memory node")
    for rank in plan.ranks:
        if rank.place is None:
            table.add_row(*map(Text, (str(rank.rank), rank.host, "(seen there)", "", "", "")))
            continue
        node = rank.place.memory_node
        table.add_row(*map(Text, (
            str(rank.rank), rank.host, format_list(rank.place.cpus), str(rank.place.threads),
            format_list(rank.place.comm_cpus), "any" if node is None else str(node))))
    console.print(table)
    first = plan.ranks[0].environment
    environment = Table("variable", "value")
    for name, value in sorted(first.items()):
        values = [rank.environment.get(name, "") for rank in plan.ranks]
        several = ", ".join(values[:4]) + (", ..." if len(values) > 4 else "") + " (by rank)"
        environment.add_row(Text(name), Text(value if set(values) == {value} else several))
    for name in plan.removed:
        environment.add_row(Text(name), Text("(not passed on)", style="dim"))
    console.print(environment)
    for words in plan.commands:
        console.print(Text(f"executes: {shlex.join(words)}"))
    for warning in plan.warnings:
        console.print(Text(f"warning: {warning}"))
    for note in plan.notes:
        console.print(Text(f"note: {note}"))


def show_job(document: dict[str, Any]) -> None:
    """Print a job's state, as `launch.jobs.describe_job` gives it."""
    console = Console(highlight=False, soft_wrap=True)
    reason = f" ({document['reason']})" if document["reason"] else ""
    console.print(Text(f"{document['name']}: {document['state']}{reason}, attempt {document['attempt']}"))
    console.print(Text(f"command: {shlex.join(document['command'])}"))
    if not document["ranks"]:
        return
    table = Table("rank", "host", "CPUs", "memory node", "state", "exit code", "error")
    for rank in document["ranks"]:
        table.add_row(*(Text("" if rank[key] is None else str(rank[key]))
                        for key in ("rank", "host", "cpus", "memory_node", "state", "code", "error")))
    console.print(table)
