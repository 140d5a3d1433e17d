"""Which processors are faster in bf16."""

from __future__ import annotations

from pathlib import Path

import pytest

from distrib.train.processor import Processor, read_processor, resolve_precision

INTEL, AMD = "GenuineIntel 6 {} Intel(R) Xeon(R)", "AuthenticAMD 25 17 AMD EPYC"


@pytest.mark.parametrize(("name", "flags", "fast"), [
    (INTEL.format(85), "avx2 avx512f", False),  # Skylake
    (INTEL.format(85), "avx2 avx512f avx512_bf16", True),  # Cooper Lake
    (INTEL.format(143), "avx2 avx512f avx512_bf16 avx512_fp16 amx_bf16", True),  # Sapphire Rapids
    (INTEL.format(207), "avx2 avx512f avx512_bf16 avx512_fp16", False),  # its successor, AMX hidden
    (AMD, "avx2 avx512f avx512_bf16", True),
    (AMD, "avx2 avx512f avx512_bf16 avx512_fp16", True),
    (AMD, "avx2", False),
    ("", "asimd bf16", True),  # ARM
    ("", "", False),
])
def test_fast_in_bf16(name: str, flags: str, fast: bool) -> None:
    assert Processor(name, frozenset(flags.split())).is_fast_in_bf16 == fast


def test_only_the_first_processor_counts(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nvendor_id\t: GenuineIntel\ncpu family\t: 6\nmodel\t\t: 143\n"
                       "model name\t: Some Xeon: fast\nflags\t\t: fpu amx_bf16\n\n"
                       "processor\t: 1\nvendor_id\t: AuthenticAMD\nflags\t\t: fpu\n\n")
    assert read_processor(cpuinfo) == Processor("GenuineIntel 6 143 Some Xeon: fast", frozenset({"fpu", "amx_bf16"}))
    assert read_processor(tmp_path / "none").flags == frozenset()


def test_a_wish_is_a_wish() -> None:
    assert resolve_precision("bf16") == "bf16"
    assert resolve_precision("fp32") == "fp32"
    assert resolve_precision("auto") in ("bf16", "fp32")
