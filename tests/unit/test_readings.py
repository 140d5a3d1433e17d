from __future__ import annotations

import math
import os
import subprocess
import sys
import time
from dataclasses import astuple
from pathlib import Path

from distrib.train.readings import NodeMeter, RankMeter, _cpu_limits

WAITS = """
import os, sys, time
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
from distrib.train.readings import RankMeter
meter, waited_s, deadline = RankMeter(), 0.0, time.monotonic() + 60
while waited_s < 0.3 and time.monotonic() < deadline:
    sum(range(1_000_000))
    waited_s += meter.read().waited_s
print(waited_s >= 0.3)
"""


def test_a_thread_that_shares_its_processor_waits_for_it() -> None:
    cpu = min(os.sched_getaffinity(0))
    busy = subprocess.Popen([sys.executable, "-c", f"import os; os.sched_setaffinity(0, {{{cpu}}})\nwhile True: pass"])
    try:
        done = subprocess.run([sys.executable, "-c", WAITS], capture_output=True, text=True, check=True, timeout=90)
    finally:
        busy.kill()
        busy.wait()
    assert done.stdout == "True\n"


def test_a_process_that_computes_keeps_a_processor_busy_and_one_that_sleeps_none() -> None:
    meter = RankMeter()
    time.sleep(0.2)
    assert meter.read().own_cores < 0.5
    own = 0.0
    for _ in range(20):  # on a busy machine it gets less
        sum(range(3_000_000))
        own = max(own, meter.read().own_cores)
    assert 0.3 < own < 1.5


def test_a_node_tells_cpu_memory_and_network() -> None:
    meter = NodeMeter("127.0.0.1")
    assert meter.interface is None  # loopback carries nothing that others could slow down
    sum(range(3_000_000))
    reading = meter.read()
    assert not any(math.isnan(value) for value in astuple(reading)), reading
    assert 0 < reading.cpu_percent <= 100
    assert reading.cores == os.cpu_count()
    assert reading.memory_used_gb > 0


def test_the_limits_of_a_cgroup_and_of_those_around_it_are_read(tmp_path: Path) -> None:
    def stat(folder: str, periods: int, stopped: int) -> None:
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / folder / "cpu.stat").write_text(f"usage_usec 7\nnr_periods {periods}\nnr_throttled {stopped}\n")

    cgroup = tmp_path / "cgroup"
    cgroup.write_text("0::/job/step\n")
    stat("job", 100, 40)
    stat("job/step", 10, 1)
    (tmp_path / "cpu.stat").write_text("usage_usec 7\n")  # the root of version 2 has no limit
    assert list(_cpu_limits(cgroup, tmp_path)) == [(10, 1), (100, 40)]
    cgroup.write_text("3:cpuset:/\n2:cpu,cpuacct:/job\n0::/none\n")  # version 1
    stat("cpu,cpuacct", 3, 2)
    stat("cpu,cpuacct/job", 5, 4)
    assert list(_cpu_limits(cgroup, tmp_path)) == [(5, 4), (3, 2)]
    assert list(_cpu_limits(tmp_path / "nothing", tmp_path)) == []
