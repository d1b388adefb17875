"""Compiles Triton's kernels for GPUs that are not there, by the launches of the project itself."""

import contextlib
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.runtime import JITFunction


@contextlib.contextmanager
def compiled_for(capability: int, cache: Path) -> Iterator[list[Any]]:
    """Turn launches into compilations for a capability such as 90; yields the list of the compiled kernels."""
    kernels: list[Any] = []
    launch = JITFunction.run
    gpu = SimpleNamespace(
        get_current_device=lambda: f"sm_{capability}",  # the key of the compiled kernels in memory
        get_current_stream=lambda device: 0,
        get_current_target=lambda: GPUTarget("cuda", capability, 32),
    )

    def compile_only(self: Any, *arguments: Any, warmup: bool, **options: Any) -> None:
        kernels.append(launch(self, *arguments, warmup=True, **options))

    with (
        mock.patch.object(triton.runtime.driver, "_active", gpu),
        mock.patch.object(JITFunction, "run", compile_only),
        mock.patch.object(triton.knobs.cache, "dir", str(cache)),
    ):
        yield kernels


def assembler_report(kernel: Any, capability: int) -> str:
    """Return what NVIDIA's assembler says of a kernel's registers and of the memory it uses instead of registers."""
    (architecture,) = re.findall(r"^\.target (\w+)", kernel.asm["ptx"], re.MULTILINE)
    command = [get_ptxas(capability).path, "-v", f"--gpu-name={architecture}", "-o", "/dev/null", "-"]
    answer = subprocess.run(command, input=kernel.asm["ptx"], capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    return answer.stderr
