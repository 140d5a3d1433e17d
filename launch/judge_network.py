"""What is wrong between nodes: names, clocks, links, the shared folder. Pure."""

from __future__ import annotations

import ipaddress
import statistics
from collections.abc import Iterable, Mapping

from launch.facts import Link
from launch.finding import Case, Finding, blame, listed

CLOCK_S = 0.5
"""NTP keeps clocks within some milliseconds. By half a second launch would tell the wrong rank to have failed first,
and file servers would show files from the future."""
SLOW_LINK = 0.5
"""Of the others' bandwidth: the ring of the all-reduce goes at the pace of its slowest link."""
LEAST_PART = 0.1
"""Ends that are short of processors may be slower by so much, and no more."""
SLOW_NOMINAL = 0.3
"""Of what the interface says of itself: one TCP stream reaches more than half of up to 10 Gbit/s."""
NOMINAL_MBIT = 10000
"""Beyond this the processor limits one stream."""
LATE_LINK = 5.0
"""Times the others' latency, and at least ..."""
LATE_S = 0.0005
"""... so much more: two switches further on are 10 us, a wide-area or wireless link 1 ms."""
SLOW_SUM = 0.1
"""Of the links' bandwidth, for the all-reduce of all nodes at once. gloo reaches 0.2 to 0.6 of it."""


def judge_network(case: Case, held: Mapping[str, float]) -> list[Finding]:
    """Findings between nodes. ``held``: hosts that do not get their cores, and how many they get."""
    if len(case.nodes) < 2:
        return []
    found = [*_folder(case), *_clock(case), *_own_names(case), *_other_names(case)]
    links = [*_links(case, held), *_latency(case)]
    named = {host for finding in links if finding.check == "link" for host in finding.hosts}
    found += [finding for finding in links if finding.check == "link" or not named.intersection(finding.hosts)]
    if not links and not held:
        found += _all_reduce(case)
    return found


def _folder(case: Case) -> list[Finding]:
    looks = {host: probe.unseen for host, probe in case.probes.items() if probe.unseen is not None}
    blind = {(host, case.name(rank)) for host, ranks in looks.items() for rank in ranks}
    bad = {(min(pair), max(pair)) for pair in blind}
    hosts = sorted(looks)
    guilty, pairs = blame(bad, ((a, b) for a in hosts for b in hosts if a < b))
    cause = "a folder of that name is there, but not the shared one: a local disk, or a mount that failed"
    remedy = "mount the file system there, or choose another folder with --job"
    found = [Finding("folder", (host,), "the job's folder there is another one: files of the others are not in it",
                     cause, remedy) for host in guilty]
    return found + [Finding("folder", pair, "they do not see each other's files in the job's folder within 10 s",
                            cause, remedy) for pair in pairs]


def _links_of(case: Case) -> dict[tuple[str, str], Link]:
    """(host, other host) -> what the host knows of the link."""
    return {(host, case.name(rank)): link for host, probe in case.probes.items() for rank, link in probe.links.items()}


def clock_offsets(case: Case) -> dict[str, float]:
    """How far each host's clock is ahead of the first's, in seconds, where it was measured."""
    links = _links_of(case)
    hosts = sorted({host for pair in links for host in pair})
    best: dict[str, float] = {}
    for base in hosts:
        known = {base: 0.0}
        for (host, other), link in links.items():
            if link.ahead_s is not None and base in (host, other):
                known[other if base == host else host] = link.ahead_s if base == host else -link.ahead_s
        if len(known) > len(best):
            best = known
    return best


def _clock(case: Case) -> list[Finding]:
    offsets = clock_offsets(case)
    agreeing = {host: [other for other, theirs in offsets.items() if abs(theirs - mine) <= CLOCK_S]
                for host, mine in offsets.items()}
    right = max(agreeing.values(), key=len, default=[])
    if len(right) == len(offsets):
        return []
    cause, remedy = "it has no time server, or its service is down", "start chronyd or ntpd there (chronyc tracking)"
    if 2 * len(right) <= len(offsets):
        first = next(iter(offsets))
        words = ", ".join(f"{host} {offset - offsets[first]:+.2f} s" for host, offset in list(offsets.items())[:6])
        return [Finding("clock", tuple(offsets), f"clocks differ ({words})", cause, remedy)]
    true = statistics.median(offsets[host] for host in right)
    return [Finding("clock", (host,),
                    f"its clock is {abs(offset - true):.2f} s {'ahead' if offset > true else 'behind'}", cause, remedy)
            for host, offset in offsets.items() if host not in right]


def _own_names(case: Case) -> list[Finding]:
    found = []
    for host, probe in case.probes.items():
        remedy = f"put its address into its /etc/hosts before {probe.host}, or write `interface` into the cluster file"
        if probe.own_name is None:
            continue
        if not probe.own_name:
            found.append(Finding("names", (host,), f"its own name {probe.host} means nothing there",
                                 "neither /etc/hosts nor the name server has it", remedy))
        elif all(map(_is_loopback, probe.own_name)):
            found.append(Finding("names", (host,), f"its own name {probe.host} means {listed(probe.own_name)} there",
                                 "its /etc/hosts, as an installer wrote it: others would be told to call themselves",
                                 remedy))
        elif probe.addresses and not {*probe.own_name} & {*probe.addresses}:
            found.append(Finding("names", (host,),
                                 f"its own name {probe.host} means {listed(probe.own_name)}, which is no address of it",
                                 "an old entry in /etc/hosts or at the name server", remedy))
    return found


def _other_names(case: Case) -> list[Finding]:
    """Wrong answers about a host are its own fault if most others give them, else theirs."""
    wrong: dict[str, dict[str, str]] = {}
    asked: dict[str, int] = {}
    for host, probe in case.probes.items():
        for rank, addresses in probe.resolved.items():
            target = case.name(rank)
            theirs = case.probes[target].addresses if target in case.probes else ()
            asked[target] = asked.get(target, 0) + 1
            if not addresses:
                wrong.setdefault(target, {})[host] = "nothing"
            elif theirs and not {*addresses} & {*theirs}:
                wrong.setdefault(target, {})[host] = listed(addresses)
    cause, remedy = "an old entry in /etc/hosts or at the name server", "correct it, or write addresses into `hosts`"
    found = []
    by_host: dict[str, list[str]] = {}
    for target, answers in wrong.items():
        if len(answers) > 1 and 2 * len(answers) > asked[target]:
            what = listed(sorted(set(answers.values())))
            found.append(Finding("names", (target,),
                                 f"to {listed(list(answers))} its name means {what}, which it is not", cause, remedy))
        else:
            for host, what in answers.items():
                by_host.setdefault(host, []).append(f"{target} means {what}")
    return found + [Finding("names", (host,), f"there {listed(words, 3)}, which it is not", cause, remedy)
                    for host, words in by_host.items()]


def bandwidths(case: Case) -> dict[tuple[str, str], float]:
    """(from, to) -> bits a second."""
    return {(other, host): 8 * link.received for (host, other), link in _links_of(case).items()
            if link.received is not None}


def _links(case: Case, held: Mapping[str, float]) -> list[Finding]:
    links, rates = _links_of(case), bandwidths(case)
    pairs = {(min(pair), max(pair)) for pair in links}
    broken = {(min(pair), max(pair)): link.error for pair, link in links.items() if link.error is not None}
    found = [Finding("link", where, f"bandwidth: none; {_words(where, broken)}", "a firewall, or no route",
                     "open all TCP ports between the nodes, or write the right `interface` into the cluster file")
             for where in _guilty(broken, pairs)]
    slow = _slow_pairs(links, rates, pairs - broken.keys(), held)
    usual = _usual(rates)
    for where in _guilty(slow, pairs - broken.keys()):
        mine = [rate for (source, target), rate in rates.items()
                if (where[0] in (source, target) if len(where) == 1 else {source, target} == {*where})]
        found.append(Finding(
            "link", where,
            f"bandwidth {gbit(min(mine))} Gbit/s" + (f", the others' {gbit(usual)}" if len(pairs) > 1 else ""),
            _why_slow(case, where),
            "look at the port's speed (ethtool), at its errors (ip -s link), cable and switch"))
    if not found:
        found += _below_nominal(case, rates, held)
    return found


def _guilty(bad: Iterable[tuple[str, str]], pairs: Iterable[tuple[str, str]]) -> list[tuple[str, ...]]:
    hosts, rest = blame(bad, pairs)
    return [*((host,) for host in hosts), *rest]


def _words(where: tuple[str, ...], broken: Mapping[tuple[str, str], str | None]) -> str:
    return next(error or "" for pair, error in broken.items() if set(where) <= set(pair))


def _usual(rates: Mapping[tuple[str, str], float]) -> float:
    """What a node reaches on its best link, half of them more: one slow node in three makes most links slow."""
    best = {host: max(rate for other, rate in rates.items() if host in other) for pair in rates for host in pair}
    return statistics.median(best.values()) if best else 0.0


def _slow_pairs(links: Mapping[tuple[str, str], Link], rates: Mapping[tuple[str, str], float],
                pairs: Iterable[tuple[str, str]], held: Mapping[str, float]) -> list[tuple[str, str]]:
    usual, found = _usual(rates), []
    for a, b in pairs:
        # TCP is work: who gets half a core, or waits for one half of the time, moves half as much.
        part = min(1.0, held.get(a, 1.0), held.get(b, 1.0))
        for pair in ((a, b), (b, a)):
            part *= 1 - (links[pair].waited or 0.0 if pair in links else 0.0)
        part = max(part, LEAST_PART)
        known = [rates[pair] for pair in ((a, b), (b, a)) if pair in rates]
        if known and min(known) < SLOW_LINK * part * usual:
            found.append((a, b))
    return found


def _why_slow(case: Case, where: tuple[str, ...]) -> str:
    speeds = {host: speed for host in case.probes if (speed := _nominal(case, host)) is not None}
    for host in where:
        others = [speed for other, speed in speeds.items() if other not in where]
        if host in speeds and others and speeds[host] < statistics.median(others):
            return (f"the interface of {host} runs at {speeds[host]} Mbit/s, the others' at "
                    f"{statistics.median(others):.0f}: its cable or port")
    return "the cable, the switch's port, a rate limit, or other traffic" + (
        f" of {where[0]}" if len(where) == 1 else " of either end or between them")


def _nominal(case: Case, host: str) -> int | None:
    machine, probe = case.machines.get(host), case.probes.get(host)
    return machine.speeds.get(probe.interface) if machine and probe and probe.interface else None


def _below_nominal(case: Case, rates: Mapping[tuple[str, str], float], held: Mapping[str, float]) -> list[Finding]:
    found = []
    for host in sorted({host for pair in rates for host in pair} - held.keys()):
        nominal = min(_nominal(case, host) or 0, NOMINAL_MBIT)
        best = max(rate for pair, rate in rates.items() if host in pair)
        if best < SLOW_NOMINAL * nominal * 1e6:
            found.append(Finding(
                "link", (host,), f"bandwidth {gbit(best)} Gbit/s at best, of an interface of {nominal} Mbit/s",
                "other traffic, a slow switch, or small frames", "check MTU, errors (ip -s link) and the switch"))
    return found


def _latency(case: Case) -> list[Finding]:
    latencies = {(min(pair), max(pair)): link.latency_s for pair, link in _links_of(case).items()
                 if link.latency_s is not None}
    if len(latencies) < 2:
        return []
    hosts = {host for pair in latencies for host in pair}
    usual = statistics.median(min(s for pair, s in latencies.items() if host in pair) for host in hosts)
    late = [pair for pair, seconds in latencies.items() if seconds > LATE_LINK * usual and seconds > usual + LATE_S]
    found = []
    for where in _guilty(late, latencies):
        mine = min(seconds for pair, seconds in latencies.items() if set(where) <= set(pair))
        found.append(Finding("latency", where, f"latency {mine * 1e6:.0f} us, the others' {usual * 1e6:.0f}",
                             "another building or switch, power saving, or a busy network",
                             "place nodes near each other; check the processor's idle states"))
    return found


def _all_reduce(case: Case) -> list[Finding]:
    hosts = tuple(case.probes)
    errors = {host: probe.all_reduce_error for host, probe in case.probes.items() if probe.all_reduce_error}
    if errors:
        return [Finding("all-reduce", hosts, f"it failed: {next(iter(errors.values()))}",
                        "the ranks use another interface than the links that were measured",
                        "write `interface` into the cluster file")]
    sums = [probe.all_reduce for probe in case.probes.values() if probe.all_reduce]
    usual = _usual(bandwidths(case))
    if sums and 8 * sums[0].bandwidth < SLOW_SUM * usual:
        return [Finding("all-reduce", hosts,
                        f"{gbit(8 * sums[0].bandwidth)} Gbit/s with {sums[0].backend}; single links have {gbit(usual)}",
                        "the switch can not carry all nodes at once, or the ranks use another interface",
                        "write `interface` into the cluster file; place nodes on one switch")]
    return []


def gbit(bits: float) -> str:
    """Bits a second as Gbit/s."""
    return f"{bits / 1e9:.2g}" if bits < 1e10 else f"{bits / 1e9:.0f}"


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address.partition("%")[0]).is_loopback
    except ValueError:
        return False
