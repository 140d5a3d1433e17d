"""What the processor computes in."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

_BF16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}


def processor_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """Instruction sets of this machine's first processor; empty where the kernel does not tell."""
    try:
        lines = cpuinfo.read_text(errors="replace").splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line.partition(":")[2] for line in lines if line.startswith(("flags", "Features"))), "")
                     .split())


def resolve_precision(wish: Literal["auto", "fp32", "bf16"]) -> Literal["fp32", "bf16"]:
    """bf16 where the processor multiplies in it, unless something else is wished for."""
    if wish != "auto":
        return wish
    return "bf16" if processor_flags() & _BF16_FLAGS else "fp32"
