"""Bytes that a worker sends per step by the lossy exchanges, once they have begun to lose something.

With w workers and c = (w - 1) / w, a ring sends each of the values that it sums 2 c times. Gradients are float32, n of
them. All-reduce, which they are compared with, is in `cost.py`.
"""

from collections.abc import Iterable
from math import prod

from torch import nn

from cluster.exchange.cost import fraction_sent

_FLOAT32_BYTES, _BFLOAT16_BYTES = 4, 2
_LEAST_COMPRESSION = 2  # torch's default, below which a matrix is sent as it is


def bf16_bytes(model: nn.Module, world_size: int) -> float:
    """Return the bytes of `bf16`, 2 c 2 n."""
    return _ring(world_size) * _BFLOAT16_BYTES * _num_parameters(model)


def powersgd_bytes(model: nn.Module, world_size: int, rank: int) -> float:
    """Return the bytes of `powersgd`, 2 c 4 times r (n + m) for each matrix (n, m), and the size of what is not one."""
    shapes: Iterable[tuple[int, ...]] = (
        tuple(parameter.shape) for parameter in model.parameters() if parameter.requires_grad
    )
    return _ring(world_size) * _FLOAT32_BYTES * sum(_num_powersgd_values(shape, rank) for shape in shapes)


def local_sgd_bytes(model: nn.Module, world_size: int, num_steps: int) -> float:
    """Return the bytes of local SGD, 2 c 4 n / k, as a mean over its steps."""
    return _ring(world_size) * _FLOAT32_BYTES * _num_parameters(model) / num_steps


def _num_powersgd_values(shape: tuple[int, ...], rank: int) -> int:
    rows, columns = shape[0], prod(shape[1:])
    num_factors = (rows + columns) * min(rows, columns, rank)
    return num_factors if num_factors * _LEAST_COMPRESSION < rows * columns else rows * columns


def _num_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def _ring(world_size: int) -> float:
    return 2 * fraction_sent(world_size)
