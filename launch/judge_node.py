"""What is wrong with single nodes, by themselves or beside the others. Pure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping

from launch.facts import Compute, Machine
from launch.finding import Case, Finding, gigabytes, listed, strangers

LOW_SHARE = 0.75
"""A node that gets less of its cores than this part of what the others get: training waits for it in every step. Chance
(a daemon, an interrupt) takes a tenth of the best window at most."""
HELD_CORES = 0.25
"""More of a core than this is missing though cores idle: chance would leave no core idle."""
SLOW_GEMM = 0.8
"""Equal processors differ by a few percent in speed; by a fifth only with a lower frequency."""
SLOW_MEMORY = 0.7
"""Equal nodes differ by up to a tenth; a missing memory channel of eight costs an eighth, of four a quarter, and memory
of another NUMA node about half."""
MIN_FREE_BYTES = 1 << 30
"""Of memory. torch and a small model alone take half of it."""
LOW_FREE = 0.5
"""Of the part of memory that the others have free: something of size lives there."""
MIN_DISK_BYTES = 1 << 30
"""In the shared folder: a ResNet-50's checkpoints of one run take 0.6 GB."""
MIN_SHM_BYTES = 64 << 20
"""A container's default. oneCCL's ranks on one host, and loaders of data, fail with less."""
MIN_LIMITS = {"nofile": 1024, "nproc": 1024}
"""Open files: a socket for each other rank, and shards. Processes, as the kernel counts a user's threads."""
MIN_LOCKED_BYTES = 64 << 20
"""Of memory that an InfiniBand device may reach; without it, its libraries fall back or fail."""
WHAT = {"nofile": ("open files", "ulimit -n"), "nproc": ("processes", "ulimit -u"),
        "memlock": ("bytes of locked memory", "ulimit -l")}


def held_hosts(case: Case) -> dict[str, float]:
    """Hosts that do not get their cores: name -> cores that they get. Their speed follows from that."""
    computes, found = case.computes, dict(_by_quota(case))
    for host, mine in computes.items():
        # Of one machine, parts that are measured in turn differ by what else ran just then.
        others = [other.share for name, other in computes.items() if name != host and case.apart(host, name)]
        missing = mine.threads * (1 - mine.share)
        is_low = bool(others) and mine.share < LOW_SHARE * statistics.median(others)
        is_held = missing > HELD_CORES and mine.idle_cores >= missing / 2
        quota = case.machines[host].quota if host in case.machines else None
        if is_low or (is_held and (quota is None or mine.share * mine.threads < quota * LOW_SHARE)):
            found[host] = min(found.get(host, math.inf), mine.share * mine.threads)
    return found


def _by_quota(case: Case) -> Iterator[tuple[str, float]]:
    """Hosts that have a quota below what the cluster file says, or below the others'."""
    parts = {host: (machine.quota or machine.cores) / machine.cores for host, machine in case.machines.items()}
    for host, machine in case.machines.items():
        shape = case.shape(host)
        if machine.quota is not None and (parts[host] < LOW_SHARE * statistics.median(parts.values()) or (
                shape is not None and machine.quota < shape.sockets * shape.cores_per_socket)):
            yield host, machine.quota


def judge_nodes(case: Case) -> list[Finding]:
    """Findings of single nodes."""
    machines = case.machines
    return [*_versions(case), *_processors(machines), *_cores(case), *_frequency(machines), *_speed(case),
            *_memory(machines), *_disk(machines), *_shm(machines), *_limits(machines)]


def _versions(case: Case) -> list[Finding]:
    found = []
    probes = {host: probe for host, probe in case.probes.items() if probe.versions}
    for name in sorted({name for probe in probes.values() for name in probe.versions}):
        common, others = strangers({host: probe.versions.get(name) or "none" for host, probe in probes.items()})
        for value, hosts in others.items():
            than = f"where most have {common}" if common is not None else "and others have another"
            found.append(Finding(
                "versions", tuple(hosts), f"{name} is {value} {than}",
                "oneCCL's backend was not built there, so `auto` means gloo for all" if name == "oneccl" else
                "another environment is first on PATH there, or was not brought up to date",
                "run `distrib backends --build oneccl` there" if name == "oneccl" else
                "use one environment for all, best on the shared folder"))
    return found


def _processors(machines: Mapping[str, Machine]) -> list[Finding]:
    found = []
    for kind in sorted({machine.processor for machine in machines.values()}):
        _, others = strangers({host: ", ".join(machine.instruction_sets) for host, machine in machines.items()
                               if machine.processor == kind})
        for sets, hosts in others.items():
            found.append(Finding(
                "processor", tuple(hosts), f"instruction sets: {sets or 'none known'}; others of that processor have "
                "others", "firmware or a virtual machine hides some", "set the firmware, or the virtual machine's "
                "processor model, as on the others; results differ in their last bits, and speed by far"))
    return found


def _cores(case: Case) -> list[Finding]:
    found, held, machines = [], held_hosts(case), case.machines
    for host in dict.fromkeys([*machines, *held]):
        machine, shape = machines.get(host), case.shape(host)
        if host in held:
            found.append(_held(host, held[host], case.computes.get(host), machine))
        elif machine is not None and shape is not None and (finding := _unlike(
                host, machine, shape.sockets * shape.cores_per_socket, shape.threads_per_core)):
            found.append(finding)
    return found


def _held(host: str, cores: float, compute: Compute | None, machine: Machine | None) -> Finding:
    total = machine.cores if machine is not None else compute.threads if compute is not None else 0
    fact = f"it gets {cores:.2g} of its {total:g} cores"
    if machine is not None and machine.quota is not None:
        return Finding("cores", (host,), fact, f"a quota of {machine.quota:g} CPUs",
                       "ask for whole nodes, or raise the limit of the control group (cpu.max) or container (--cpus)")
    missing = total - cores
    if compute is not None and compute.stolen_cores >= missing / 2:
        return Finding("cores", (host,), fact, "the hypervisor gives the rest to other virtual machines",
                       "ask for dedicated cores")
    if compute is not None and compute.idle_cores >= missing / 2:
        return Finding("cores", (host,), fact, "a CPU quota holds it back, as cores idle meanwhile",
                       "look at cpu.max of the control group, of the container or of the job")
    return Finding("cores", (host,), fact, "other processes compute there, or a CPU quota holds it back",
                   "look with top for processes that were left behind, and at cpu.max of the control group")


def _unlike(host: str, machine: Machine, cores: int, threads_per_core: int) -> Finding | None:
    if machine.cores == cores and machine.machine_cpus == cores * threads_per_core:
        return None
    if machine.machine_cpus == cores * threads_per_core:
        return Finding("cores", (host,), f"{machine.cores} of its {cores} cores may be used",
                       "the job or the container was given no more", "ask for whole nodes (slurm.exclusive: true)")
    return Finding(
        "cores", (host,), f"it has {machine.machine_cpus} hardware threads, {machine.cores} cores may be used; the "
        f"cluster file says {cores} cores of {threads_per_core}",
        "the file describes another machine, hyper-threading is set otherwise, or cores are off",
        "correct `node` for that host, or its firmware")


def _frequency(machines: Mapping[str, Machine]) -> list[Finding]:
    found = []
    common, others = strangers({host: machine.governor for host, machine in machines.items() if machine.governor})
    for value, hosts in others.items():
        found.append(Finding(
            "frequency", tuple(hosts), f"the frequency governor is {value}"
            + (f", the others' is {common}" if common else ", others have another"), "set otherwise at boot",
            "cpupower frequency-set -g performance"))
    return found


def _speed(case: Case) -> list[Finding]:
    held = held_hosts(case)
    computes = {host: compute for host, compute in case.computes.items() if host not in held}
    found: list[Finding] = []
    for host, mine in computes.items():
        peers = [other for name, other in computes.items() if name != host and _alike(case, host, name)]
        if not peers:
            continue
        slow = []
        for kind in ("fp32", "bf16"):
            part = _part(mine, peers, kind)
            if part < SLOW_GEMM:
                slow.append(f"{getattr(mine, kind):.3g} GFLOP/s in {kind}, {part:.0%} of the others'")
        if slow:
            found.append(Finding("speed", (host,), "matrix products: " + "; ".join(slow),
                                 _why_slow(case, host, computes),
                                 "compare frequency and temperature with the others' under load (turbostat)"))
        part = _part(mine, peers, "memory")
        if part < SLOW_MEMORY and not slow:
            found.append(Finding(
                "memory", (host,), f"memory gives {mine.memory:.3g} GB/s, {part:.0%} of the others'",
                "memory modules are missing or slow, or NUMA is set otherwise in the firmware",
                "compare dmidecode -t memory and numactl -H with another node's"))
    return found


def _part(mine: Compute, peers: Iterable[Compute], kind: str) -> float:
    """Of the peers' median speed; 1 where the cores were too busy to say."""
    def of(compute: Compute) -> float:
        return float(getattr(compute, f"{kind}_undisturbed") or 0.0)

    known = [speed for speed in map(of, peers) if speed > 0]
    return of(mine) / statistics.median(known) if known and of(mine) > 0 else 1.0


def _alike(case: Case, first: str, second: str) -> bool:
    if not case.apart(first, second):
        return False

    def kind(host: str) -> tuple[object, ...]:
        machine = case.machines.get(host)
        about = (machine.processor, machine.instruction_sets, machine.sockets) if machine else ()
        return (case.computes[host].threads, *about)

    return kind(first) == kind(second)


def _why_slow(case: Case, host: str, computes: Mapping[str, Compute]) -> str:
    machine = case.machines.get(host)
    others = [case.machines[name].max_mhz for name in computes if name != host and name in case.machines]
    usual = statistics.median([mhz for mhz in others if mhz is not None] or [0])
    if machine is not None and machine.max_mhz is not None and machine.max_mhz < 0.95 * usual:
        return f"its highest frequency is {machine.max_mhz} MHz, the others' {usual:.0f}"
    return "a lower frequency: heat, a power limit, or another firmware profile; or a neighbour on the same core"


def _memory(machines: Mapping[str, Machine]) -> list[Finding]:
    found = []
    for host, machine in machines.items():
        others = [other.free_bytes / other.memory_bytes for name, other in machines.items()
                  if name != host and other.memory_bytes]
        part = machine.free_bytes / machine.memory_bytes if machine.memory_bytes else 1.0
        if machine.free_bytes < MIN_FREE_BYTES or (others and part < LOW_FREE * statistics.median(others)):
            found.append(Finding(
                "memory", (host,),
                f"{gigabytes(machine.free_bytes)} of {gigabytes(machine.memory_bytes)} memory are free"
                + (f" ({part:.0%}; the others have {statistics.median(others):.0%})" if others else ""),
                "other processes, or files in /dev/shm that a killed job left", "look with top, and into /dev/shm"))
    common, sizes = strangers({host: _rounded(machine.memory_bytes) for host, machine in machines.items()})
    if common is not None and len({machine.processor for machine in machines.values()}) == 1:
        for size, hosts in sizes.items():
            if size < 0.9 * common:
                found.append(Finding("memory", tuple(hosts), f"it has {size} GiB of memory, the others {common}",
                                     "a memory module failed or is missing", "compare dmidecode -t memory"))
    return found


def _rounded(size: int) -> int:
    """GiB, coarse enough for what firmware and kernels keep for themselves."""
    gib = size / 2**30
    step = max(1, int(gib) // 32)
    return round(gib / step) * step


def _disk(machines: Mapping[str, Machine]) -> list[Finding]:
    short = {host: machine.disk_bytes for host, machine in machines.items() if machine.disk_bytes < MIN_DISK_BYTES}
    return [Finding("disk", tuple(short), f"{gigabytes(min(short.values()))} are free in the shared folder",
                    "it is full, or a quota is", "free some space, or choose another folder with --job")
            ] if short else []


def _shm(machines: Mapping[str, Machine]) -> list[Finding]:
    short = {host: machine.shm_bytes or 0 for host, machine in machines.items()
             if machine.shm_bytes is None or machine.shm_bytes < MIN_SHM_BYTES}
    return [Finding("shm", tuple(short), f"/dev/shm holds {gigabytes(min(short.values()))}",  # noqa: S108
                    "a container's default, or it is not mounted", "start the container with --shm-size=1g, or mount it"
                    )] if short else []


def _limits(machines: Mapping[str, Machine]) -> list[Finding]:
    is_low: dict[str, Callable[[Machine], bool]] = {
        name: lambda machine, name=name: 0 <= machine.limits.get(name, -1) < MIN_LIMITS[name]  # type: ignore[misc]
        for name in MIN_LIMITS}
    is_low["memlock"] = lambda machine: machine.rdma and 0 <= machine.limits.get("memlock", -1) < MIN_LOCKED_BYTES
    found = []
    for name, test in is_low.items():
        hosts = [host for host, machine in machines.items() if test(machine)]
        if hosts:
            words, command = WHAT[name]
            found.append(Finding(
                "limits", tuple(hosts), f"{min(machines[host].limits[name] for host in hosts)} {words} are the limit",
                f"{command} there; a login shell's may be another than the launcher's",
                "raise it in /etc/security/limits.conf or in the launcher's service, on " + listed(hosts)))
    return found


def notes(case: Case) -> list[str]:
    """What is worth knowing and no fault."""
    said = []
    machines = case.machines
    kinds = {machine.processor for machine in machines.values()}
    if len(kinds) > 1:
        said.append(f"there are {len(kinds)} kinds of processor ({listed(sorted(kinds), 3)}): the slowest sets the "
                    "pace, and where a lane is computed decides its last bits")
    sizes = {machine.cores for machine in machines.values()}
    if len(sizes) > 1 and any(case.shape(host) is None for host in machines):
        said.append("nodes differ in cores, and the cluster file does not describe them: write a group with `node` for "
                    "each kind")
    slow = [host for host, machine in machines.items() if machine.governor == "powersave"
            and machine.driver not in ("intel_pstate", "amd-pstate-epp")]
    if len(slow) == len(machines) > 0:
        said.append("all frequency governors are powersave: cpupower frequency-set -g performance")
    shares = [compute.share for compute in case.computes.values()]
    if shares and statistics.median(shares) < LOW_SHARE:
        said.append(f"nodes got {statistics.median(shares):.0%} of their cores at best: others compute there as well, "
                    "so speeds are not compared")
    quotas = {host: machine.quota for host, machine in machines.items() if machine.quota is not None}
    if quotas:
        said.append(f"CPU quotas: {', '.join(f'{host} {quota:g}' for host, quota in list(quotas.items())[:6])}")
    return said
