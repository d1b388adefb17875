"""Kernels of Triton without a GPU: in its interpreter, or compiled for cards that are not there.

Triton reads TRITON_INTERPRET when it is imported, so the interpreter needs a process of its own.
"""

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from typing import Any

CARDS = (80, 90, 100)  # compute capabilities times 10: A100, H100, B200


def run(*arguments: str, interprets: bool = True) -> str:
    """Run Python in a process, and return its standard output."""
    environment = os.environ | {"TRITON_INTERPRET": "1" if interprets else "0"}
    answer = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=environment)
    assert answer.returncode == 0, answer.stderr
    return answer.stdout


def compile_for(card: int, kernel: Any, types: Mapping[str, str], constants: Mapping[str, Any]) -> dict[str, int]:
    """Compile a kernel; return counts of what stands in its code and what ptxas says of it.

    Args:
        card: Compute capability times 10.
        kernel: Function decorated by `triton.jit`.
        types: Type of each argument by name, as Triton writes it; more names are ignored.
        constants: Value of each constant by name.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.backends.nvidia.compiler import get_ptxas, sm_arch_from_capability
    from triton.compiler import ASTSource

    names = kernel.arg_names
    signature = {name: "constexpr" if name in constants else types[name] for name in names}
    places = {(names.index(name),): value for name, value in constants.items()}
    # As at a launch: memory is aligned, and numbers of units and channels are multiples of 16.
    aligned = [name for name in names if signature[name].startswith("*") or name == "num_units"]
    attributes = {(names.index(name),): [["tt.divisibility", 16]] for name in aligned}
    source = ASTSource(fn=kernel, signature=signature, constexprs=places, attrs=attributes)
    ptx = triton.compile(source, target=GPUTarget("cuda", card, 32), options={"num_warps": 4}).asm["ptx"]
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        command = [
            get_ptxas(card).path,
            "-v",
            f"--gpu-name={sm_arch_from_capability(card)}",
            file.name,
            "-o",
            os.devnull,
        ]
        told = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    patterns = {
        "vector loads": r"ld\.global\.v4",
        "vector stores": r"st\.global\.v4",
        "other loads": r"ld\.global\.(?!v4)",
        "barriers": r"bar\.sync",
        "shared": r"\.shared\.",
        "shuffles": r"shfl\.",
        "fused": r"fma\.rn\.f32",
        "divisions": r"\bdiv\.",
        "rounded to nearest": r"cvt\.rn\.bf16x2\.f32",
    }
    counts = {name: len(re.findall(pattern, ptx)) for name, pattern in patterns.items()}
    (counts["registers"],) = map(int, re.findall(r"Used (\d+) registers", told))
    counts["spilled bytes"] = sum(map(int, re.findall(r"(\d+) bytes spill", told)))
    return counts
