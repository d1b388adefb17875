"""Local response normalisation across channels, by named conventions, with its own backward.

Krizhevsky, Sutskever, Hinton (2012), section 3.3, for the channel i of one pixel:

    b_i = a_i / d_i^beta,    d_i = k + alpha * sum_{|j - i| <= n/2} a_j^2

and, for g = dL/db (the window is symmetric, so backward uses the same sum):

    dL/da_i = g_i / d_i^beta - 2 alpha beta a_i * sum_{|j - i| <= n/2} g_j b_j / d_j

Only the input is kept for backward, which computes d again: this saves memory for a little more arithmetic.
Channels-last activations use fused kernels: on a CPU those of `model/lrn_kernel.py`, on a GPU those of
`model/lrn_triton.py`. Elsewhere torch's own operators are used: on a CPU the windowed sum is a 1x1 convolution with a
banded matrix of ones, and on a GPU a pooling, since a convolution might use TF32, which has the precision of float16.
"""

from collections.abc import Iterator
from dataclasses import asdict
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from model.lrn_conventions import CONVENTIONS, Convention
from model.triton_support import triton_runs_on

_CPU_BLOCK_BYTES = 4 << 20  # temporaries of this size stay in a core's share of the cache


class LocalResponseNorm(nn.Module):
    """Divides each activation by a power of its neighbouring channels' energy (the module's header has the formula).

    Takes (N, C, H, W) of any floating dtype and memory format, and returns the same; bfloat16 and float16 are computed
    in float32 and rounded once, also under autocast.

    Args:
        convention: Name in `CONVENTIONS`.
    """

    def __init__(self, convention: str = "printed") -> None:
        super().__init__()
        if convention not in CONVENTIONS:
            raise ValueError(f"convention={convention!r}: must be one of {', '.join(CONVENTIONS)}")
        self.convention = convention

    def forward(self, activations: Tensor) -> Tensor:
        """Normalise (N, C, H, W)."""
        return _Normalize.apply(activations, CONVENTIONS[self.convention])

    def extra_repr(self) -> str:
        """Show the convention in the model's printed form."""
        return repr(self.convention)


class _Normalize(torch.autograd.Function):
    """The formula and its derivative, computed a few samples at a time."""

    @staticmethod
    def forward(ctx: Any, activations: Tensor, convention: Convention) -> Tensor:
        ctx.save_for_backward(activations)
        ctx.convention = convention
        kernel = _kernel(activations, convention)
        if kernel is not None:
            return kernel.normalize(activations, **asdict(convention))
        output = torch.empty_like(activations)
        dtype = _arithmetic_dtype(activations)
        for rows in _blocks(activations):
            block = activations[rows].to(dtype)
            output[rows] = _inverse_power(_energy(block, convention), convention.beta).mul_(block)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (activations,) = ctx.saved_tensors
        convention: Convention = ctx.convention
        kernel = _kernel(activations, convention)
        if kernel is not None:
            gradient = gradient.to(activations.dtype).contiguous(memory_format=torch.channels_last)
            return kernel.differentiate(activations, gradient, **asdict(convention)), None
        output = torch.empty_like(activations)
        dtype = _arithmetic_dtype(activations)
        for rows in _blocks(activations):
            block, upstream = activations[rows].to(dtype), gradient[rows].to(dtype)
            energy = _energy(block, convention)
            direct = _inverse_power(energy, convention.beta).mul_(upstream)
            shared = _sum_neighbours((direct * block).div_(energy), convention.size)
            output[rows] = direct.addcmul_(shared, block, value=-2 * convention.alpha * convention.beta)
        return output, None


def _kernel(activations: Tensor, convention: Convention) -> ModuleType | None:
    """Return the fused kernels if they apply; imported here, since only these variants need Numba or Triton."""
    if triton_runs_on(activations.device):
        from model import lrn_triton

        return lrn_triton if lrn_triton.supports(activations, convention.beta) else None
    if activations.device.type == "cpu":
        from model import lrn_kernel

        return lrn_kernel if lrn_kernel.supports(activations) else None
    return None


def _blocks(activations: Tensor) -> Iterator[slice]:
    """Cut the batch into slices: cache-sized on a CPU, whole elsewhere (a GPU pays per kernel, not per byte)."""
    num_samples = len(activations)
    size = num_samples
    if activations.device.type == "cpu":
        size = _CPU_BLOCK_BYTES // max(4 * activations[:1].numel(), 1)
    for start in range(0, num_samples, max(size, 1)):
        yield slice(start, start + max(size, 1))


def _arithmetic_dtype(activations: Tensor) -> torch.dtype:
    return torch.promote_types(activations.dtype, torch.float32)


def _energy(block: Tensor, convention: Convention) -> Tensor:
    """Compute d = k + alpha * windowed sum of squares."""
    return _sum_neighbours(block.square(), convention.size).mul_(convention.alpha).add_(convention.k)


def _sum_neighbours(values: Tensor, size: int) -> Tensor:
    """Sum each channel's window."""
    if values.device.type != "cpu":
        return _pool_neighbours(values, size)
    channel = torch.arange(values.shape[1], device=values.device)
    band = (channel[:, None] - channel).abs() <= size // 2
    with torch.autocast(values.device.type, enabled=False):  # autocast would round the squares to bfloat16
        return nn.functional.conv2d(values, band[:, :, None, None].to(values.dtype))


def _pool_neighbours(values: Tensor, size: int) -> Tensor:
    """Sum each channel's window without a product, so no rounding but that of the sum."""
    padded = nn.functional.pad(values, (0, 0, 0, 0, size // 2, size // 2))
    return nn.functional.avg_pool3d(padded[:, None], (size, 1, 1), stride=1, divisor_override=1)[:, 0]


def _inverse_power(energy: Tensor, beta: float) -> Tensor:
    """Compute energy^-beta; the conventions' betas, 0.75 and 0.5, use square roots, which are much faster."""
    if beta not in (0.5, 0.75):
        return energy.pow(-beta)
    root = energy.rsqrt()
    return root if beta == 0.5 else root.sqrt().mul_(root)
