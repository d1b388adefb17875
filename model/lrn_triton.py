"""Local response normalisation in one pass over memory, for channels-last activations on a GPU.

Triton compiles it on the machine where it runs. A thread takes one vector of 16 bytes, neighbouring channels of a
pixel. It also reads the vectors beside it, which other threads of the same warp load at the same time, and computes in
registers. Forward reads the activations once from memory and writes the result once; backward reads activations and
gradient, computes the sums of squares again, and writes once. The formula and its derivative are in `model/lrn.py`. All
arithmetic is in float32, and the result is rounded once, to the nearest even.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from model.triton_vectors import join_columns, split_columns

_BETAS = (0.5, 0.75)  # these need only square roots
_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
_VECTOR_BYTES = 16
_NUM_WARPS = 8
_VECTORS_PER_PROGRAM = 32 * _NUM_WARPS  # one per thread


def supports(activations: Tensor, beta: float) -> bool:
    """Return whether the kernels support the exponent, and the dtype and layout of activations (N, C, H, W)."""
    return (
        beta in _BETAS and activations.dtype in _DTYPES and activations.is_contiguous(memory_format=torch.channels_last)
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
    """Run a kernel over all pixels, several whole ones per program."""
    activations = tensors[0]
    if not activations.numel():
        return
    num_channels = activations.shape[1]
    num_rows = activations.numel() // num_channels
    width = _VECTOR_BYTES // activations.element_size()
    vectors_per_row = triton.cdiv(num_channels, width)
    block = max(_VECTORS_PER_PROGRAM, triton.next_power_of_2(vectors_per_row))
    rows_per_program = block // vectors_per_row
    shape = (num_channels, size // 2, *constants, rows_per_program, block, width)
    with torch.cuda.device_of(activations):
        kernel[(triton.cdiv(num_rows, rows_per_program),)](*tensors, num_rows, *shape, num_warps=_NUM_WARPS)


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
    WIDTH: tl.constexpr,
) -> None:
    REACH: tl.constexpr = (RADIUS + WIDTH - 1) // WIDTH
    start, row, vector, is_row = _place(num_rows, CHANNELS, ROWS, BLOCK, WIDTH)
    values = _read(input_ptr + start, row, vector, is_row, CHANNELS, REACH, WIDTH)
    results: tl.tuple = ()
    for place in tl.static_range(WIDTH * REACH, WIDTH * REACH + WIDTH):
        _, power = _roots(values, place, RADIUS, ALPHA, BETA, K)
        results += (values[place] * power,)
    _write(output_ptr + start, results, row, vector, is_row, CHANNELS)


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
    WIDTH: tl.constexpr,
) -> None:
    # The sums of squares of the neighbours are needed too, so activations are read twice the radius away.
    FAR: tl.constexpr = (2 * RADIUS + WIDTH - 1) // WIDTH
    NEAR: tl.constexpr = (RADIUS + WIDTH - 1) // WIDTH
    start, row, vector, is_row = _place(num_rows, CHANNELS, ROWS, BLOCK, WIDTH)
    values = _read(input_ptr + start, row, vector, is_row, CHANNELS, FAR, WIDTH)
    gradients = _read(gradient_ptr + start, row, vector, is_row, CHANNELS, NEAR, WIDTH)
    direct: tl.tuple = ()
    summands: tl.tuple = ()
    for place in tl.static_range(-RADIUS, WIDTH + RADIUS):
        value = values[FAR * WIDTH + place]
        root, power = _roots(values, FAR * WIDTH + place, RADIUS, ALPHA, BETA, K)
        scaled = gradients[NEAR * WIDTH + place] * power
        direct += (scaled,)
        summands += (scaled * value * (root * root),)
    results: tl.tuple = ()
    for place in tl.static_range(WIDTH):
        shared: tl.tensor = summands[place]
        for shift in tl.static_range(1, 2 * RADIUS + 1):
            shared += summands[place + shift]
        results += (direct[RADIUS + place] - (2 * ALPHA * BETA) * values[FAR * WIDTH + place] * shared,)
    _write(output_ptr + start, results, row, vector, is_row, CHANNELS)


@triton.jit
def _place(
    num_rows: tl.tensor, CHANNELS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, WIDTH: tl.constexpr
) -> tl.tuple:
    """Return the program's offset in memory, and for each thread its row, its vector, and whether the row exists."""
    VECTORS: tl.constexpr = (CHANNELS + WIDTH - 1) // WIDTH
    first_row = tl.program_id(0).to(tl.int64) * ROWS  # times the channels, this may exceed 31 bits
    thread = tl.arange(0, BLOCK)
    row = thread // VECTORS
    return first_row * CHANNELS, row, thread % VECTORS, (row < ROWS) & (row < num_rows - first_row)


@triton.jit
def _read(
    start_ptr: tl.tensor,
    row: tl.tensor,
    vector: tl.tensor,
    is_row: tl.tensor,
    CHANNELS: tl.constexpr,
    REACH: tl.constexpr,
    WIDTH: tl.constexpr,
) -> tl.tuple:
    """Return the channels of a vector and of REACH vectors on either side, in float32; 0 outside the row."""
    VECTORS: tl.constexpr = (CHANNELS + WIDTH - 1) // WIDTH
    values: tl.tuple = ()
    for step in tl.static_range(-REACH, REACH + 1):
        is_vector = is_row
        if step < 0:
            is_vector = is_row & (vector >= -step)
        if step > 0:
            is_vector = is_row & (vector < VECTORS - step)
        offsets, mask = _cells(row, vector + step, is_vector, CHANNELS, WIDTH)
        values += split_columns(tl.load(start_ptr + offsets, mask=mask, other=0.0).to(tl.float32))
    return values


@triton.jit
def _write(
    start_ptr: tl.tensor,
    results: tl.tuple,
    row: tl.tensor,
    vector: tl.tensor,
    is_row: tl.tensor,
    CHANNELS: tl.constexpr,
) -> None:
    offsets, mask = _cells(row, vector, is_row, CHANNELS, len(results))
    tl.store(start_ptr + offsets, join_columns(results).to(start_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _cells(
    row: tl.tensor, vector: tl.tensor, is_vector: tl.tensor, CHANNELS: tl.constexpr, WIDTH: tl.constexpr
) -> tl.tuple:
    """Return the offsets (BLOCK, WIDTH) of vectors in memory, and which of the values exist."""
    channel = vector[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]
    mask = is_vector[:, None] & (channel < CHANNELS) if CHANNELS % WIDTH else is_vector[:, None]
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
    """Return d^-1/2 and d^-beta of a channel, where d is that of `model/lrn.py`."""
    energy = values[place] * values[place]
    for shift in tl.static_range(1, RADIUS + 1):
        energy += values[place - shift] * values[place - shift]
        energy += values[place + shift] * values[place + shift]
    root = tl.rsqrt(K + ALPHA * energy)
    return root, root * tl.sqrt(root) if BETA == 0.75 else root
