"""The processor of this machine, and limits that keep libraries from using all of it. Standard library only.

Measurements depend on it: a CPU without bfloat16 instructions emulates that type, which makes a matrix product tens of
times slower than in float32.
"""

import os
import platform
from dataclasses import dataclass
from pathlib import Path

# Flags of Linux (arch/x86/include/asm/cpufeatures.h, arch/arm64/kernel/cpuinfo.c) -> what people call them.
_INSTRUCTIONS = {
    "avx2": "AVX2",
    "avx512f": "AVX-512",
    "avx512_bf16": "bfloat16",
    "amx_bf16": "AMX bfloat16",
    "asimd": "NEON",
    "sve": "SVE",
    "bf16": "bfloat16",
}
_BFLOAT16 = {"bfloat16", "AMX bfloat16"}
# Variables that tell oneDNN, ATen, MKL and Numba not to use certain instructions.
_LIMITS = (
    "DNNL_MAX_CPU_ISA",
    "ONEDNN_MAX_CPU_ISA",
    "ATEN_CPU_CAPABILITY",
    "MKL_ENABLE_INSTRUCTIONS",
    "NUMBA_CPU_NAME",
)


@dataclass(frozen=True)
class Processor:
    """A kind of processor, as seen by a process that runs on it.

    Attributes:
        name: Manufacturer's name for the processor.
        instructions: Vector instructions it supports, of those that matter here.
        limits: Environment variables that keep libraries from using some instructions, as `NAME=value`.
    """

    name: str
    instructions: tuple[str, ...]
    limits: tuple[str, ...] = ()

    @property
    def has_bfloat16(self) -> bool:
        """Whether the processor has bfloat16 instructions, which libraries may or may not use."""
        return not _BFLOAT16.isdisjoint(self.instructions)

    @property
    def form(self) -> str:
        """Instruction set that the libraries are limited to, in lower case (`avx2`), or empty."""
        return self.limits[0].partition("=")[2].lower() if self.limits else ""

    def __str__(self) -> str:
        """Describe the processor in words."""
        without = "" if self.has_bfloat16 else ", no bfloat16"
        limits = f", limited by {' '.join(self.limits)}" if self.limits else ""
        return f"{self.name} ({', '.join(self.instructions) or 'no vector instructions known'}{without}{limits})"


def this_processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> Processor:
    """Return the kind of this machine's processor, or just its architecture if Linux does not tell more.

    Args:
        cpuinfo: Linux's description of the processors.
    """
    first: dict[str, str] = {}
    try:
        for line in cpuinfo.read_text().splitlines():
            key, _, value = line.partition(":")
            first.setdefault(key.strip(), value.strip())
    except OSError:
        pass
    flags = (first.get("flags") or first.get("Features") or "").split()
    found = dict.fromkeys(name for flag, name in _INSTRUCTIONS.items() if flag in flags)
    limits = tuple(f"{name}={os.environ[name]}" for name in _LIMITS if os.environ.get(name))
    return Processor(first.get("model name") or platform.machine(), tuple(found), limits)
