"""What the doctor found, as tables for people."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from launch.cluster import Cluster
from launch.facts import Node
from launch.finding import Case, Finding, gigabytes
from launch.judge import Verdict
from launch.judge_network import bandwidths, clock_offsets, gbit

COLUMNS: tuple[tuple[str, tuple[str, ...], bool], ...] = (
    ("host", ("reach", "probe", "folder", "versions"), True), ("cores", ("cores", "processor"), True),
    ("frequency", ("frequency",), False), ("GFLOP/s\nfp32 bf16", ("speed",), True), ("memory\nGB/s", ("memory",), True),
    ("memory\nfree", ("memory",), True), ("disk", ("disk",), False), ("shm", ("shm",), False),
    ("open\nfiles", ("limits",), False), ("clock", ("clock",), True), ("own name", ("names",), False),
    ("Gbit/s\nleast best", ("link",), True), ("latency\nus", ("latency",), True),
)
"""Heading, the checks whose findings mark it, whether it is shown without any."""


def show(cluster: Cluster, nodes: Sequence[Node], verdict: Verdict) -> None:
    """Print a table of the nodes, the findings and the notes on stdout."""
    console = Console(highlight=False)
    case = Case(cluster, tuple(nodes))
    shown = [heading for heading, checks, always in COLUMNS
             if always or any(finding.check in checks for finding in verdict.findings)]
    table = Table(*shown, title=None)
    rates, offsets = bandwidths(case), clock_offsets(case)
    for node in nodes:
        cells = _cells(node, rates, offsets, case)
        table.add_row(*(_cell(text, node.name, checks, verdict.findings)
                        for text, (heading, checks, _) in zip(cells, COLUMNS, strict=True) if heading in shown))
    if nodes:
        console.print(table)
    sums = next((node.probe.all_reduce for node in nodes if node.probe and node.probe.all_reduce), None)
    if sums is not None:
        console.print(Text(f"all-reduce of all nodes: {gbit(8 * sums.bandwidth)} Gbit/s with {sums.backend} "
                           f"({gigabytes(sums.bytes)} in {sums.seconds:.2g} s); of two numbers: "
                           f"{sums.small_s * 1e6:.0f} us"), soft_wrap=True)
    for finding in verdict.findings:
        console.print(Text.assemble((f"{' - '.join(finding.hosts)}: ", "bold red"),
                                    f"{finding.fact}. Likely cause: {finding.cause}. Remedy: {finding.remedy}."),
                      soft_wrap=True)
    for note in verdict.notes:
        console.print(Text(f"note: {note}", style="dim"), soft_wrap=True)
    if not verdict.findings:
        console.print(Text("nothing is wrong"))


def _cell(text: str, host: str, checks: Sequence[str], findings: Sequence[Finding]) -> Text:
    if any(host in finding.hosts and finding.check in checks for finding in findings):
        return Text(f"{text} !", style="bold red")
    return Text(text)


def _cells(node: Node, rates: dict[tuple[str, str], float], offsets: dict[str, float], case: Case) -> list[str]:
    machine, probe = node.machine, node.probe
    compute = probe.compute if probe else None
    mine = [rate for pair, rate in rates.items() if node.name in pair]
    latencies = [link.latency_s for host, other in case.probes.items() for rank, link in other.links.items()
                 if node.name in (host, case.name(rank)) and link.latency_s is not None]
    own = machine.governor or "" if machine else ""
    return [
        node.name,
        f"{machine.cores}" if machine else "?",
        f"{own} {machine.max_mhz} MHz".strip() if machine and machine.max_mhz else own or "?",
        f"{compute.fp32:.0f} {compute.bf16:.0f}" if compute else "?",
        f"{compute.memory:.3g}" if compute else "?",
        gigabytes(machine.free_bytes) if machine else "?",
        gigabytes(machine.disk_bytes) if machine else "?",
        gigabytes(machine.shm_bytes) if machine and machine.shm_bytes is not None else "?",
        str(machine.limits.get("nofile", "?")) if machine else "?",
        f"{offsets[node.name]:+.3f} s" if node.name in offsets else "",
        (" ".join(probe.own_name) or "none") if probe and probe.own_name is not None else "?",
        f"{gbit(min(mine))} {gbit(max(mine))}" if mine else "",
        f"{min(latencies) * 1e6:.0f}" if latencies else "",
    ]
