"""What this machine's processor is and can do, as the kernel tells it."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

_IDENTITY = ("vendor_id", "cpu family", "model", "model name")


@dataclass(frozen=True)
class Processor:
    """The first processor of this machine."""

    name: str
    """Vendor, family, model and name: processors with equal ones compute equal bits."""
    flags: frozenset[str]
    """Instruction sets; empty where the kernel does not tell."""

    @property
    def is_fast_in_bf16(self) -> bool:
        """Whether products of bf16 take less time than those of float32.

        With AMX, by far; with AVX512_BF16 on AMD (Zen 4 and later) and on Intel's Cooper Lake, about twice; with the
        bf16 instructions of ARM. Not on later Intel processors (they have AVX512_FP16) whose AMX a virtual machine
        hides: there AVX512_BF16 multiplies at half of float32's rate (`benchmarks/compute.py` shows it).
        """
        if "amx_bf16" in self.flags or "bf16" in self.flags:
            return True
        hidden_amx = self.name.startswith("GenuineIntel") and "avx512_fp16" in self.flags
        return "avx512_bf16" in self.flags and not hidden_amx


def read_processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> Processor:
    """Parse the kernel's description of the first processor; local."""
    try:
        lines = cpuinfo.read_text(errors="replace").partition("\n\n")[0].splitlines()
    except OSError:
        lines = []
    pairs = (line.partition(":") for line in lines)
    fields = {name.strip(): value.strip() for name, _, value in pairs}
    name = " ".join(fields[key] for key in _IDENTITY if key in fields)
    return Processor(name or platform.processor(), frozenset(fields.get("flags", fields.get("Features", "")).split()))


def resolve_precision(wish: Literal["auto", "fp32", "bf16"]) -> Literal["fp32", "bf16"]:
    """bf16 where this processor is faster in it, unless something else is wished for."""
    if wish != "auto":
        return wish
    return "bf16" if read_processor().is_fast_in_bf16 else "fp32"
