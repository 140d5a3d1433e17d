"""How much of a core's speed the bare training loop of ResNet-50 gets, and what each setting brings.

    python benchmarks/compute.py [--rounds 5] [--json]

Each setting runs in a process of its own, as the allocator is chosen at its start; all take turns, one
step each, on the same core. A step's FLOP are counted by torch.utils.flop_counter; the core's bf16 GEMM
rate is measured beside every step, so that the ratio holds when the machine's speed drifts.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

from timing import note, one_core, show

from launch.allocator import choose_allocator
from launch.settings import settings_for

BATCH, SIDE, GEMM = 32, 224, 2048
# name: (bf16, channels last, fused optimiser, what launch sets)
SETTINGS = {
    "fp32": (False, False, False, False),
    "fp32, channels last": (False, True, False, False),
    "bf16, channels last": (True, True, False, False),
    "bf16, channels last, fused SGD": (True, True, True, False),
    "the same under launch": (True, True, True, True),
}


def child(name: str) -> None:
    """Serve one setting: a line on stdin asks for a step, the answer is a line of JSON."""
    import torch
    import torch.nn.functional as F
    from torch.utils.flop_counter import FlopCounterMode

    from distrib.models.resnet import resnet50

    bf16, channels_last, fused, _ = SETTINGS[name]
    one_core()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    model = resnet50(1000).to(memory_format=layout)  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, fused=fused)
    images_NCHW = torch.randn(BATCH, 3, SIDE, SIDE).to(memory_format=layout)
    labels_N = torch.randint(0, 1000, (BATCH,))
    a, b = torch.randn(GEMM, GEMM).bfloat16(), torch.randn(GEMM, GEMM).bfloat16()

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            logits_NK = model(images_NCHW)
        F.cross_entropy(logits_NK.float(), labels_N).backward()
        optimizer.step()

    with FlopCounterMode(display=False) as counter:
        step()
    flop = counter.get_total_flops()
    gemm_flop_s: list[float] = []
    for _ in sys.stdin:
        rates = []
        for _ in range(7):
            start = time.perf_counter()
            a @ b
            rates.append(2 * GEMM**3 / (time.perf_counter() - start))
        start = time.perf_counter()
        step()
        step_s = time.perf_counter() - start
        gemm_flop_s.append(statistics.median(rates))
        print(json.dumps({"step_s": step_s, "gemm": gemm_flop_s[-1], "flop": flop}), flush=True)


def start(name: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment.pop("LD_PRELOAD", None)
    if SETTINGS[name][3]:
        environment |= settings_for(1, "tcmalloc") | {"LD_PRELOAD": str(choose_allocator("tcmalloc", {}).library)}
    return subprocess.Popen([sys.executable, __file__, "--child", name], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                            text=True, env=environment)


def ask(process: subprocess.Popen[str]) -> dict[str, float]:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("step\n")
    process.stdin.flush()
    answer: dict[str, float] = json.loads(process.stdout.readline())
    return answer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.child)
        return
    processes = {name: start(name) for name in SETTINGS}
    taken: dict[str, list[dict[str, float]]] = {name: [] for name in SETTINGS}
    try:
        for number in range(options.rounds + 1):
            for name, process in processes.items():
                answer = ask(process)
                if number:  # the first round warms up
                    taken[name].append(answer)
            note(f"round {number} of {options.rounds}")
    finally:
        for process in processes.values():
            process.kill()
            process.communicate()
    first = [answer["step_s"] for answer in taken[next(iter(SETTINGS))]]
    rows = []
    for name, answers in taken.items():
        rows.append({
            "setting": name,
            "images_per_s": statistics.median(BATCH / answer["step_s"] for answer in answers),
            "over_first": statistics.median(a / b["step_s"] for a, b in zip(first, answers, strict=True)),
            "of_gemm": statistics.median(a["flop"] / a["step_s"] / a["gemm"] for a in answers),
            "gemm_gflop_s": statistics.median(answer["gemm"] for answer in answers) / 1e9,
        })
    if options.json:
        show(json.dumps(rows))
        return
    show(f"ResNet-50, {SIDE} px, batch {BATCH}, one core, {options.rounds} rounds; medians")
    show(f"{'setting':34}{'images/s':>10}{'x first':>9}{'of bf16 GEMM':>14}{'GEMM GFLOP/s':>14}")
    for row in rows:
        show(f"{row['setting']:34}{row['images_per_s']:10.2f}{row['over_first']:9.2f}{row['of_gemm']:14.3f}"
             f"{row['gemm_gflop_s']:14.0f}")


if __name__ == "__main__":
    main()
