"""Whether Triton's kernels run on a GPU: found out by launching one, since they need more than the package.

This module does not import Triton, so that machines without a GPU never load it.
"""

import functools
import warnings

import torch


def triton_runs_on(device: torch.device) -> bool:
    """Return whether Triton's kernels run on a device; if they fail on a GPU, warn once and say why."""
    if device.type != "cuda":
        return False
    if torch.compiler.is_compiling():
        return True  # torch.compile itself needs Triton on a GPU
    return _runs_on_gpu(torch.cuda.current_device() if device.index is None else device.index)


@functools.cache
def _runs_on_gpu(index: int) -> bool:
    try:
        _launch(index)
    except Exception as error:  # Triton raises whatever its compilers, the C compiler and the driver raise
        cause = " ".join(f"{type(error).__name__}: {error}".split())
        warnings.warn(
            f"Triton can't run a kernel on cuda:{index} ({cause}). Local response normalisation and dropout use "
            "torch's operators instead: their results agree, but they are several times slower. To use Triton, "
            "install the package `triton` in the version that this torch needs, and a C compiler such as gcc. Triton "
            "may not support older GPUs.",
            stacklevel=3,
        )
        return False
    return True


def _launch(index: int) -> None:
    """Run the smallest kernel."""
    from model.triton_vectors import copy_vector

    with torch.cuda.device(index):
        source = torch.zeros(8, dtype=torch.bfloat16, device="cuda")
        copy_vector[(1,)](source, torch.empty_like(source))
