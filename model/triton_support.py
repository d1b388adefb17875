"""Whether the kernels written in Triton can be used, and what happens where they can't.

Triton comes with torch for NVIDIA GPUs. It compiles at the first use, which takes a C compiler, and for cards from
compute capability 8 on. Where it fails, torch's own operators compute the same, some times slower.
"""

import functools
import importlib.util
import warnings

import torch


def has_kernels(device: torch.device) -> bool:
    """Return whether a device can run the kernels; the first call for a GPU tries one, and warns if it fails."""
    return device.type == "cuda" and _works_on(torch.cuda.current_device() if device.index is None else device.index)


@functools.cache
def _works_on(index: int) -> bool:
    if importlib.util.find_spec("triton") is None:
        cause = "it is not installed"
    else:
        try:
            from model.dropout_triton import drop  # imported here: it takes a second, and only GPUs need it

            device = torch.device("cuda", index)
            kept = drop(torch.ones(1, 8, device=device), torch.zeros(1, dtype=torch.int64, device=device), 0, 1.0, 0, 0)
            torch.cuda.synchronize(device)
            if kept.shape == (1, 8):
                return True
            cause = "its results are wrong"
        except Exception as error:  # Triton raises what its compiler, the C compiler and the driver raise
            cause = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    warnings.warn(
        f"Triton can't be used ({cause}); response normalisation and dropout take longer: install triton, and a C "
        "compiler such as gcc",
        stacklevel=2,
    )
    return False
