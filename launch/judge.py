"""From what is known of all nodes to what is wrong with them. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from launch.cluster import Cluster
from launch.facts import Node
from launch.finding import Case, Finding, listed
from launch.judge_network import judge_network
from launch.judge_node import held_hosts, judge_nodes, notes


@dataclass(frozen=True)
class Verdict:
    """What the doctor found."""

    findings: tuple[Finding, ...]
    """Something is wrong if there are any."""
    notes: tuple[str, ...]


def judge(cluster: Cluster, nodes: Sequence[Node], lost: Sequence[Finding] = ()) -> Verdict:
    """Judge ``nodes``, which are in the order of their ranks. ``lost``: about hosts where no rank could be started.

    What follows from something found is not told again: figures of a host that does not get its cores, the
    all-reduce over a slow link.
    """
    case = Case(cluster, tuple(nodes))
    findings = [*lost, *_probes(case), *judge_nodes(case), *judge_network(case, held_hosts(case))]
    return Verdict(tuple(findings), tuple(notes(case)))


def _probes(case: Case) -> list[Finding]:
    """Hosts whose probe did not come, or did not end."""
    silent = [node.name for node in case.nodes if node.probe is None]
    cut = [node.name for node in case.nodes if node.probe and not node.probe.finished and not node.probe.error]
    broken: Mapping[str, str] = {node.name: node.probe.error for node in case.nodes if node.probe and node.probe.error}
    found = [Finding("probe", (host,), "its probe left no word",
                     "the host died, it has no such Python or folder, or mpirun's or Slurm's daemon there failed",
                     "see the log of that rank in the job's folder") for host in silent]
    found += [Finding("probe", (host,), "its probe ended before its time",
                      "it was killed, as the kernel does when memory runs out, or it hung",
                      "see the log of that rank in the job's folder, and dmesg there") for host in cut]
    absent = {case.name(rank) for node in case.nodes if node.probe for rank in node.probe.absent}
    for host in sorted(absent & broken.keys()) or (() if found else broken):
        packages = broken[host].startswith("a package is missing")
        found.append(Finding(
            "probe", (host,), broken[host],
            "its environment lacks it" if packages else
            f"it does not reach {case.name(0)}: a wrong address for that name, or a firewall" if host in absent else
            "another probe left early" if len(broken) > 1 else "see the log of that rank in the job's folder",
            "use one environment for all, best on the shared folder" if packages else
            f"check there what {listed([case.name(0)])} means, and that its ports are open"))
    return found
