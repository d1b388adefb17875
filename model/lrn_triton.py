"""Local response normalisation in one pass over memory, for channels-last activations on a GPU.

Triton compiles it on the machine where it runs. A thread takes eight neighbouring channels of a pixel, reads also the
eights beside them, which other threads of the same warp load at the same time, and computes in registers: forward reads
the activations once from memory and writes the result once, and backward reads activations and gradient and writes
once, computing the sums of squares again. The formula and its derivative are in `model/lrn.py`; all arithmetic is in
float32, and the result is rounded once, to the nearest even.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from model.triton_eights import join_eight, split_eight

_BETAS = (0.5, 0.75)  # other exponents would need a power, which is less exact
_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
_NUM_WARPS = 8
_EIGHTS_PER_PROGRAM = 32 * _NUM_WARPS  # one per thread


def supports(activations: Tensor, beta: float) -> bool:
    """Return whether the kernels support the exponent, and the dtype and layout of activations (N, C, H, W)."""
    return (
        beta in _BETAS
        and activations.dtype in _DTYPES
        and activations.is_contiguous(memory_format=torch.channels_last)
    )


@torch.library.custom_op("alexnet::local_response_norm_triton", mutates_args=())  # opaque to torch.compile
def normalize(activations: Tensor, size: int, alpha: float, beta: float, k: float) -> Tensor:
    """Compute the normalised activations; `Convention` explains the constants."""
    output = torch.empty_like(activations)
    _launch(_forward, (activations, output), size, alpha, beta, k)
    return output


@torch.library.custom_op("alexnet::local_response_norm_triton_backward", mutates_args=())
def differentiate(activations: Tensor, gradient: Tensor, size: int, alpha: float, beta: float, k: float) -> Tensor:
    """Compute the gradient of the activations from `gradient`, that of the result, in the same dtype and layout."""
    output = torch.empty_like(activations)
    _launch(_backward, (activations, gradient, output), size, alpha, beta, k)
    return output


for _operator in (normalize, differentiate):
    _operator.register_fake(lambda activations, *_: torch.empty_like(activations))


def _launch(kernel: triton.JITFunction, tensors: tuple[Tensor, ...], size: int, *constants: float) -> None:
    num_channels = tensors[0].shape[1]
    num_rows = tensors[0].numel() // max(num_channels, 1)
    if not num_rows:
        return
    eights_per_row = -(-num_channels // 8)
    block = max(_EIGHTS_PER_PROGRAM, triton.next_power_of_2(eights_per_row))
    rows_per_program = block // eights_per_row
    grid = (-(-num_rows // rows_per_program),)
    with torch.cuda.device_of(tensors[0]):
        kernel[grid](
            *tensors, num_rows, num_channels, size // 2, *constants, rows_per_program, block, num_warps=_NUM_WARPS
        )


@triton.jit
def _forward(
    input_ptr: tl.tensor,
    output_ptr: tl.tensor,
    num_rows: tl.tensor,
    CHANNELS: tl.constexpr,
    RADIUS: tl.constexpr,
    ALPHA: tl.constexpr,
    BETA: tl.constexpr,
    K: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    REACH: tl.constexpr = (RADIUS + 7) // 8
    start, row, group, is_row = _place(num_rows, CHANNELS, ROWS, BLOCK)
    values = _read(input_ptr + start, row, group, is_row, CHANNELS, REACH)
    results = ()
    for place in tl.static_range(8 * REACH, 8 * REACH + 8):
        root, power = _roots(values, place, RADIUS, ALPHA, BETA, K)
        results += (values[place] * power,)
    _write(output_ptr + start, results, row, group, is_row, CHANNELS)


@triton.jit
def _backward(
    input_ptr: tl.tensor,
    gradient_ptr: tl.tensor,
    output_ptr: tl.tensor,
    num_rows: tl.tensor,
    CHANNELS: tl.constexpr,
    RADIUS: tl.constexpr,
    ALPHA: tl.constexpr,
    BETA: tl.constexpr,
    K: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    # The sums of the neighbours are needed too, so twice the radius is read of the activations.
    WIDE: tl.constexpr = (2 * RADIUS + 7) // 8
    NARROW: tl.constexpr = (RADIUS + 7) // 8
    start, row, group, is_row = _place(num_rows, CHANNELS, ROWS, BLOCK)
    values = _read(input_ptr + start, row, group, is_row, CHANNELS, WIDE)
    gradients = _read(gradient_ptr + start, row, group, is_row, CHANNELS, NARROW)
    direct = ()
    summands = ()
    for place in tl.static_range(-RADIUS, 8 + RADIUS):
        root, power = _roots(values, 8 * WIDE + place, RADIUS, ALPHA, BETA, K)
        scaled = gradients[8 * NARROW + place] * power
        direct += (scaled,)
        summands += (scaled * values[8 * WIDE + place] * (root * root),)
    results = ()
    for place in tl.static_range(8):
        shared = summands[place]
        for shift in tl.static_range(1, 2 * RADIUS + 1):
            shared += summands[place + shift]
        results += (direct[RADIUS + place] - (2 * ALPHA * BETA) * values[8 * WIDE + place] * shared,)
    _write(output_ptr + start, results, row, group, is_row, CHANNELS)


@triton.jit
def _place(num_rows: tl.tensor, CHANNELS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr) -> tl.tuple:
    """Return the program's offset in memory, and for each eight its row, its place in the row, and if it exists."""
    GROUPS: tl.constexpr = (CHANNELS + 7) // 8
    first_row = tl.program_id(0).to(tl.int64) * ROWS  # times the channels, this may exceed 31 bits
    eight = tl.arange(0, BLOCK)
    row = eight // GROUPS
    return first_row * CHANNELS, row, eight % GROUPS, (row < ROWS) & (row < num_rows - first_row)


@triton.jit
def _read(
    start_ptr: tl.tensor,
    row: tl.tensor,
    group: tl.tensor,
    is_row: tl.tensor,
    CHANNELS: tl.constexpr,
    REACH: tl.constexpr,
) -> tl.tuple:
    """Return the channels of an eight and of REACH eights on either side, in float32; 0 outside the row."""
    GROUPS: tl.constexpr = (CHANNELS + 7) // 8
    values = ()
    for step in tl.static_range(-REACH, REACH + 1):
        is_group = is_row
        if step < 0:
            is_group = is_row & (group >= -step)
        if step > 0:
            is_group = is_row & (group < GROUPS - step)
        offsets, mask = _cells(row, group + step, is_group, CHANNELS)
        values += split_eight(tl.load(start_ptr + offsets, mask=mask, other=0.0).to(tl.float32))
    return values


@triton.jit
def _write(
    start_ptr: tl.tensor, results: tl.tuple, row: tl.tensor, group: tl.tensor, is_row: tl.tensor, CHANNELS: tl.constexpr
) -> None:
    offsets, mask = _cells(row, group, is_row, CHANNELS)
    tl.store(start_ptr + offsets, join_eight(results).to(start_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _cells(row: tl.tensor, group: tl.tensor, is_group: tl.tensor, CHANNELS: tl.constexpr) -> tl.tuple:
    """Return the offsets (BLOCK, 8) of eights, and which of them exist."""
    channel = group[:, None] * 8 + tl.arange(0, 8)[None, :]
    mask = is_group[:, None] & (channel < CHANNELS) if CHANNELS % 8 else is_group[:, None]
    return row[:, None] * CHANNELS + channel, mask


@triton.jit
def _roots(
    values: tl.tuple,
    place: tl.constexpr,
    RADIUS: tl.constexpr,
    ALPHA: tl.constexpr,
    BETA: tl.constexpr,
    K: tl.constexpr,
) -> tl.tuple:
    """Return d^-1/2 and d^-beta of a channel, for the sum of squares d of `model/lrn.py`."""
    energy = values[place] * values[place]
    for shift in tl.static_range(1, RADIUS + 1):
        energy += values[place - shift] * values[place - shift]
        energy += values[place + shift] * values[place + shift]
    root = tl.rsqrt(K + ALPHA * energy)
    return root, root * tl.sqrt(root) if BETA == 0.75 else root
