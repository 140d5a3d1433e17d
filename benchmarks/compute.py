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

from distrib.train.processor import read_processor
from launch.allocator import choose_allocator
from launch.settings import settings_for

BATCH, SIDE, GEMM = 32, 224, 2048
# name: (bf16, channels last, fused optimiser, what launch sets)
SETTINGS = {
    "fp32": (False, False, False, False),
    "fp32, channels last": (False, True, False, False),
    "fp32, channels last, fused, launch": (False, True, True, True),
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
    a, b = torch.randn(GEMM, GEMM), torch.randn(GEMM, GEMM)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            logits_NK = model(images_NCHW)
        F.cross_entropy(logits_NK.float(), labels_N).backward()
        optimizer.step()

    with FlopCounterMode(display=False) as counter:
        step()
    flop = counter.get_total_flops()

    def gemm_flop_s(dtype: torch.dtype) -> float:
        left, right = a.to(dtype), b.to(dtype)
        seconds = []
        for _ in range(7):
            start = time.perf_counter()
            left @ right
            seconds.append(time.perf_counter() - start)
        return 2 * GEMM**3 / statistics.median(seconds)

    for _ in sys.stdin:
        answer = {"flop": flop, "fp32": gemm_flop_s(torch.float32), "bf16": gemm_flop_s(torch.bfloat16)}
        start = time.perf_counter()
        step()
        answer["step_s"] = time.perf_counter() - start
        print(json.dumps(answer), flush=True)


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
        def of_gemm(kind: str, answers: list[dict[str, float]] = answers) -> float:
            return statistics.median(a["flop"] / a["step_s"] / a[kind] for a in answers)

        rows.append({
            "setting": name,
            "images_per_s": statistics.median(BATCH / answer["step_s"] for answer in answers),
            "over_first": statistics.median(a / b["step_s"] for a, b in zip(first, answers, strict=True)),
            "of_bf16_gemm": of_gemm("bf16"),
            "of_fp32_gemm": of_gemm("fp32"),
        })
    rates = {kind: statistics.median(answer[kind] for answers in taken.values() for answer in answers) / 1e9
             for kind in ("fp32", "bf16")}
    if options.json:
        show(json.dumps({"gemm_gflop_s": rates, "settings": rows}))
        return
    show(f"ResNet-50, {SIDE} px, batch {BATCH}, one core of {read_processor().name}, {options.rounds} rounds; medians; "
         f"GEMM: {rates['fp32']:.0f} GFLOP/s in fp32, {rates['bf16']:.0f} in bf16")
    show(f"{'setting':36}{'images/s':>10}{'x first':>9}{'of bf16 GEMM':>14}{'of fp32 GEMM':>14}")
    for row in rows:
        show(f"{row['setting']:36}{row['images_per_s']:10.2f}{row['over_first']:9.2f}{row['of_bf16_gemm']:14.3f}"
             f"{row['of_fp32_gemm']:14.3f}")


if __name__ == "__main__":
    main()
