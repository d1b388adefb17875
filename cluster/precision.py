"""What a recipe's `precision` means: `bfloat16` is autocast, weights and inputs stay float32."""

from contextlib import AbstractContextManager, nullcontext

import torch

from cluster.config import Precision


def input_dtype(precision: Precision) -> torch.dtype:
    """Return the dtype of weights and images."""
    return torch.float64 if precision == "float64" else torch.float32


def forward_context(precision: Precision, device: torch.device) -> AbstractContextManager[torch.autocast | None]:
    """Return the context in which the model runs forward."""
    if precision == "bfloat16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return nullcontext()
