"""Local response normalisation on a GPU: one kernel forward and one backward, for channels-last activations.

The formula and its derivative are in `model/lrn.py`. A thread takes one pixel and walks along its channels, eight at a
time: one load of 16 bytes in bfloat16, its squares and sums in registers, one store. So forward reads the activations
once and writes the result once, and backward reads two rows and writes one; threads share nothing. Arithmetic is in
float32, and the result is rounded once. Sums need channels that come later, so results lag behind the loads by a whole
number of tiles.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

_NUM_WARPS = 4
_ROWS = 32 * _NUM_WARPS  # pixels in a program, one for each thread
_TILE: tl.constexpr = tl.constexpr(8)  # channels; `_columns` and `_tile` are written for this number
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def supports(activations: Tensor) -> bool:
    """Return whether the kernels support the dtype and layout of activations (N, C, H, W) on a GPU."""
    return activations.dtype in _DTYPES and activations.is_contiguous(memory_format=torch.channels_last)


@torch.library.custom_op("alexnet::local_response_norm_gpu", mutates_args=())  # opaque to torch.compile
def normalize(activations: Tensor, size: int, alpha: float, beta: float, k: float) -> Tensor:
    """Compute the normalised activations; `Convention` explains the constants."""
    output = torch.empty_like(activations)
    _over_rows(_forward, (activations, output), size, alpha, beta, k)
    return output


@torch.library.custom_op("alexnet::local_response_norm_gpu_backward", mutates_args=())
def differentiate(activations: Tensor, gradient: Tensor, size: int, alpha: float, beta: float, k: float) -> Tensor:
    """Compute the gradient of the activations from `gradient`, that of the result, in the same dtype and layout."""
    output = torch.empty_like(activations)
    _over_rows(_backward, (activations, gradient, output), size, alpha, beta, k)
    return output


for _operator in (normalize, differentiate):
    _operator.register_fake(lambda activations, *_: torch.empty_like(activations))


def _over_rows(
    kernel: triton.JITFunction, tensors: tuple[Tensor, ...], size: int, alpha: float, beta: float, k: float
) -> None:
    num_channels = tensors[0].shape[1]
    num_rows = tensors[0].numel() // max(num_channels, 1)
    if not num_rows:
        return
    with torch.cuda.device_of(tensors[0]):
        kernel[(triton.cdiv(num_rows, _ROWS),)](
            *tensors,
            num_rows,
            alpha,
            k,
            CHANNELS=num_channels,
            HALF=size // 2,
            BETA=beta,
            ROWS=_ROWS,
            num_warps=_NUM_WARPS,
        )


@triton.jit
def _forward(
    inputs,
    outputs,
    num_rows,
    alpha,
    k,
    CHANNELS: tl.constexpr,
    HALF: tl.constexpr,
    BETA: tl.constexpr,
    ROWS: tl.constexpr,
):
    LAG: tl.constexpr = (HALF + _TILE - 1) // _TILE * _TILE
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, _TILE)
    offset = row[:, None] * CHANNELS + column[None, :]
    kept = _zeros(ROWS, LAG + HALF)
    for first in range(0, CHANNELS + LAG, _TILE):
        values = kept + _columns(_load(inputs, offset, row, column, num_rows, first, CHANNELS), ROWS)
        results = ()
        for place in tl.static_range(_TILE):
            scale, _ = _power(values, place, alpha, k, HALF, BETA)
            results = results + (values[place + HALF] * scale,)
        _store(outputs, results, offset, row, column, num_rows, first - LAG, CHANNELS, ROWS)
        kept = values[_TILE:]


@triton.jit
def _backward(
    inputs,
    gradients,
    outputs,
    num_rows,
    alpha,
    k,
    CHANNELS: tl.constexpr,
    HALF: tl.constexpr,
    BETA: tl.constexpr,
    ROWS: tl.constexpr,
):
    LAG: tl.constexpr = (2 * HALF + _TILE - 1) // _TILE * _TILE
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, _TILE)
    offset = row[:, None] * CHANNELS + column[None, :]
    # Before each tile: the values from channel first - LAG on, the gradients and g / d^beta from first - HALF and
    # first - LAG on, and the summands g b / d from first - LAG - HALF on.
    kept_values, kept_gradients = _zeros(ROWS, LAG), _zeros(ROWS, HALF)
    kept_direct, kept_summands = _zeros(ROWS, LAG - HALF), _zeros(ROWS, LAG)
    for first in range(0, CHANNELS + LAG, _TILE):
        values = kept_values + _columns(_load(inputs, offset, row, column, num_rows, first, CHANNELS), ROWS)
        upstream = kept_gradients + _columns(_load(gradients, offset, row, column, num_rows, first, CHANNELS), ROWS)
        direct, summands = kept_direct, kept_summands
        for place in tl.static_range(_TILE):
            scale, reciprocal = _power(values, LAG - 2 * HALF + place, alpha, k, HALF, BETA)
            scaled = upstream[place] * scale
            direct = direct + (scaled,)
            summands = summands + (scaled * values[LAG - HALF + place] * reciprocal,)
        results = ()
        for place in tl.static_range(_TILE):
            shared = summands[place]
            for other in tl.static_range(1, 2 * HALF + 1):
                shared += summands[place + other]
            results = results + (direct[place] - 2 * alpha * BETA * values[place] * shared,)
        _store(outputs, results, offset, row, column, num_rows, first - LAG, CHANNELS, ROWS)
        kept_values, kept_gradients = values[_TILE:], upstream[_TILE:]
        kept_direct, kept_summands = direct[_TILE:], summands[_TILE:]


@triton.jit
def _power(values, place, alpha, k, HALF: tl.constexpr, BETA: tl.constexpr):
    """Return d^-beta and 1 / d of the channel in the middle of the window that begins at `place`."""
    energy = values[place] * values[place]
    for other in tl.static_range(1, 2 * HALF + 1):
        energy += values[place + other] * values[place + other]
    energy = k + alpha * energy
    root = tl.rsqrt(energy)
    if BETA == 0.75:
        return root * tl.sqrt(root), root * root
    elif BETA == 0.5:
        return root, root * root
    else:
        return tl.exp2(-BETA * tl.log2(energy)), root * root


@triton.jit
def _load(pointer, offset, row, column, num_rows, first, CHANNELS: tl.constexpr):
    inside = (row[:, None] < num_rows) & (first + column[None, :] < CHANNELS)
    return tl.load(pointer + offset + first, mask=inside, other=0).to(tl.float32)


@triton.jit
def _store(pointer, columns, offset, row, column, num_rows, first, CHANNELS: tl.constexpr, ROWS: tl.constexpr):
    inside = (row[:, None] < num_rows) & (first >= 0) & (first + column[None, :] < CHANNELS)
    tl.store(pointer + offset + first, _tile(columns, ROWS).to(pointer.dtype.element_ty), mask=inside)


@triton.jit
def _columns(tile, ROWS: tl.constexpr):
    """Return the columns of a tile (ROWS, 8); each thread has a row, so nothing moves."""
    even, odd = tl.split(tl.reshape(tile, (ROWS, 4, 2)))
    by_4, by_4_from_2 = tl.split(tl.reshape(even, (ROWS, 2, 2)))
    by_4_from_1, by_4_from_3 = tl.split(tl.reshape(odd, (ROWS, 2, 2)))
    column_0, column_4 = tl.split(by_4)
    column_2, column_6 = tl.split(by_4_from_2)
    column_1, column_5 = tl.split(by_4_from_1)
    column_3, column_7 = tl.split(by_4_from_3)
    return column_0, column_1, column_2, column_3, column_4, column_5, column_6, column_7


@triton.jit
def _tile(columns, ROWS: tl.constexpr):
    """Return the tile of eight columns."""
    even = tl.join(tl.join(columns[0], columns[4]), tl.join(columns[2], columns[6]))
    odd = tl.join(tl.join(columns[1], columns[5]), tl.join(columns[3], columns[7]))
    return tl.reshape(tl.join(tl.reshape(even, (ROWS, 4)), tl.reshape(odd, (ROWS, 4))), (ROWS, 8))


@triton.jit
def _zeros(ROWS: tl.constexpr, COUNT: tl.constexpr):
    zero = tl.zeros((ROWS,), tl.float32)
    zeros = (zero,)
    for _ in tl.static_range(COUNT - 1):
        zeros = zeros + (zero,)
    return zeros
