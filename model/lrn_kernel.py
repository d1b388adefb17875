"""Local response normalisation in one pass over memory, for channels-last activations on a CPU.

Numba compiles it on the machine where it runs, which needs no compiler, and stores the result beside this file or in
the user's cache. The channels of a pixel form one row, whose squares, sums and roots stay in the first-level cache:
forward reads the activations once and writes the result once, and backward reads two rows and writes one. The formula
and its derivative are in `model/lrn.py`; bfloat16 is computed in float32 and rounded once, to the nearest even.
"""

import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numba
import numpy as np
import torch
from numba.extending import overload
from torch import Tensor

Array = np.ndarray[Any, Any]
# Divisions never raise, and a product may be fused with a sum, so that the loops can be vectorised.
_OPTIONS: Any = {"nogil": True, "error_model": "numpy", "fastmath": {"contract"}}
_CHUNKS_PER_THREAD = 4  # so that one busy core does not delay the others
_STORED = {torch.bfloat16: torch.uint16, torch.float32: torch.float32, torch.float64: torch.float64}
_NUM_BUFFERS = 5  # each holds one pixel's row


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile at the first call, and store the result if there is a writable folder for it."""
    try:
        return numba.njit(cache=True, **_OPTIONS)(function)
    except RuntimeError:  # neither this folder nor the user's cache is writable
        return numba.njit(**_OPTIONS)(function)


def supports(activations: Tensor) -> bool:
    """Return whether the kernels support the dtype, device and layout of activations (N, C, H, W)."""
    return (
        activations.device.type == "cpu"
        and activations.dtype in _STORED
        and activations.is_contiguous(memory_format=torch.channels_last)
    )


@torch.library.custom_op("alexnet::local_response_norm", mutates_args=())  # opaque to torch.compile
def normalize(activations: Tensor, size: int, alpha: float, beta: float, k: float) -> Tensor:
    """Compute the normalised activations; `Convention` explains the constants."""
    output = torch.empty_like(activations)
    _over_rows(_forward, (activations, output), size, (alpha, beta, k))
    return output


@torch.library.custom_op("alexnet::local_response_norm_backward", mutates_args=())
def differentiate(activations: Tensor, gradient: Tensor, size: int, alpha: float, beta: float, k: float) -> Tensor:
    """Compute the gradient of the activations from `gradient`, that of the result, in the same dtype and layout."""
    output = torch.empty_like(activations)
    _over_rows(_backward, (activations, gradient, output), size, (alpha, beta, k))
    return output


for _operator in (normalize, differentiate):
    _operator.register_fake(lambda activations, *_: torch.empty_like(activations))


def _over_rows(
    kernel: Callable[..., None], tensors: tuple[Tensor, ...], size: int, constants: tuple[float, ...]
) -> None:
    """Run a kernel over all pixels, on as many threads as torch uses."""
    arrays = [_rows(tensor) for tensor in tensors]
    num_rows, num_channels = arrays[0].shape
    dtype = np.dtype(np.float64 if tensors[0].dtype == torch.float64 else np.float32)
    typed = [dtype.type(constant) for constant in constants]

    def run(start: int, stop: int) -> None:
        # Separate arrays, since buffers exactly a page apart would make loads wait for stores.
        scratch = tuple(np.zeros(num_channels + size - 1, dtype) for _ in range(_NUM_BUFFERS))
        kernel(*(array[start:stop] for array in arrays), scratch, size, *typed)

    num_threads = torch.get_num_threads()
    if num_threads == 1:
        run(0, num_rows)
        return
    step = max(1, -(-num_rows // (num_threads * _CHUNKS_PER_THREAD)))
    starts = range(0, num_rows, step)
    list(_threads(num_threads).map(run, starts, [start + step for start in starts]))


@functools.cache
def _threads(num_threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(num_threads, thread_name_prefix="lrn")


def _rows(tensor: Tensor) -> Array:
    """View channels-last (N, C, H, W) as (N*H*W, C); bfloat16 as raw bits, since NumPy has no such dtype."""
    rows = tensor.detach().permute(0, 2, 3, 1).flatten(0, 2)
    return rows.view(_STORED[tensor.dtype]).numpy()


@_compiled
def _forward(inputs: Array, outputs: Array, scratch: Any, size: int, alpha: float, beta: float, k: float) -> None:
    num_channels = inputs.shape[1]
    padded, values, energy, result, _ = scratch
    squares = padded[size // 2 : size // 2 + num_channels]
    for row in range(len(inputs)):
        _load(inputs[row], values)
        for channel in range(num_channels):
            squares[channel] = values[channel] * values[channel]
        _sum_neighbours(padded, energy, size, num_channels)
        for channel in range(num_channels):
            energy[channel] = k + alpha * energy[channel]
        _raise_inversely(energy, beta, result, num_channels)
        for channel in range(num_channels):
            result[channel] *= values[channel]
        _store(result, outputs[row])


@_compiled
def _backward(
    inputs: Array, gradients: Array, outputs: Array, scratch: Any, size: int, alpha: float, beta: float, k: float
) -> None:
    num_channels = inputs.shape[1]
    padded, values, energy, result, gradient = scratch
    summands = padded[size // 2 : size // 2 + num_channels]
    factor = values.dtype.type(-2) * alpha * beta
    for row in range(len(inputs)):
        _load(inputs[row], values)
        _load(gradients[row], gradient)
        for channel in range(num_channels):
            summands[channel] = values[channel] * values[channel]
        _sum_neighbours(padded, energy, size, num_channels)
        for channel in range(num_channels):
            energy[channel] = k + alpha * energy[channel]
        _raise_inversely(energy, beta, result, num_channels)
        for channel in range(num_channels):
            result[channel] *= gradient[channel]
            summands[channel] = result[channel] * values[channel] / energy[channel]
        _sum_neighbours(padded, energy, size, num_channels)
        for channel in range(num_channels):
            result[channel] += factor * values[channel] * energy[channel]
        _store(result, outputs[row])


@_compiled
def _sum_neighbours(padded: Array, sums: Array, size: int, num_channels: int) -> None:
    """Sum each channel's window; `padded` has zeros before and after the channels."""
    for channel in range(num_channels):
        sums[channel] = padded[channel]
    for shift in range(1, size):
        for channel in range(num_channels):
            sums[channel] += padded[channel + shift]


@_compiled
def _raise_inversely(energy: Array, beta: float, powers: Array, num_channels: int) -> None:
    one = energy.dtype.type(1)  # a literal would turn the arithmetic into double precision
    if beta == 0.75:
        for place in range(num_channels):
            root = one / np.sqrt(energy[place])
            powers[place] = root * np.sqrt(root)
    elif beta == 0.5:
        for place in range(num_channels):
            powers[place] = one / np.sqrt(energy[place])
    else:
        for place in range(num_channels):
            powers[place] = energy[place] ** -beta


def _load(stored: Array, row: Array) -> None:
    """Copy a row and convert it to the dtype of the arithmetic."""
    raise NotImplementedError


def _store(row: Array, stored: Array) -> None:
    """Copy a row back; bfloat16 is rounded to nearest, ties to even, and NaN stays NaN."""
    raise NotImplementedError


@overload(_load, jit_options=_OPTIONS)
def _choose_load(stored: Any, row: Any) -> Callable[..., None]:
    if stored.dtype == numba.uint16:

        def load(stored: Any, row: Any) -> None:
            bits = row.view(np.uint32)
            for place in range(stored.size):
                bits[place] = np.uint32(stored[place]) << np.uint32(16)

        return load

    def copy(stored: Any, row: Any) -> None:
        for place in range(stored.size):
            row[place] = stored[place]

    return copy


@overload(_store, jit_options=_OPTIONS)
def _choose_store(row: Any, stored: Any) -> Callable[..., None]:
    if stored.dtype == numba.uint16:

        def store(row: Any, stored: Any) -> None:
            bits = row.view(np.uint32)
            for place in range(stored.size):
                even = (bits[place] >> np.uint32(16)) & np.uint32(1)
                rounded = (bits[place] + np.uint32(0x7FFF) + even) >> np.uint32(16)
                stored[place] = np.uint32(0x7FC0) if np.isnan(row[place]) else rounded

        return store

    def copy(row: Any, stored: Any) -> None:
        for place in range(stored.size):
            stored[place] = row[place]

    return copy
