"""Dropout with counter-based masks in one kernel: the mask's bits are computed where they are used.

The bits are those of `model/dropout.py`'s `keep_mask`. Backward multiplies the gradient by the same mask, so it is the
same operator, which computes the mask again: this moves fewer bytes than a stored mask, and ten rounds of Philox for
eight units take less time than moving the eight units.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from model.triton_vectors import join_columns

_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
_NUM_WARPS = 4
_EIGHTS_PER_PROGRAM = 32 * _NUM_WARPS  # one per thread


def supports(activations: Tensor) -> bool:
    """Return whether the kernel supports the dtype and layout of activations (B, ...)."""
    return activations.dtype in _DTYPES and activations.is_contiguous()


@torch.library.custom_op("alexnet::counted_dropout_triton", mutates_args=())  # opaque to torch.compile
def drop(
    activations: Tensor, positions: Tensor, factor: float, threshold: int, seed: int, layer: int, first_block: int
) -> Tensor:
    """Multiply the survivors by a factor, and the other units by zero.

    Args:
        activations: Contiguous (B, ...).
        positions: int64 (B,) on the same device.
        factor: Factor of the survivors; first rounded to the dtype of the activations.
        threshold: Number below which a unit's 16 bits drop it.
        seed: Seed of the masks, as a signed number of 64 bits.
        layer: Number of the dropout layer within the model.
        first_block: Number of the first block of 8 units within the layer.
    """
    output = torch.empty_like(activations)
    if not activations.numel():
        return output
    num_units = activations[0].numel()
    grid = (len(activations), triton.cdiv(num_units, 8 * _EIGHTS_PER_PROGRAM))
    with torch.cuda.device_of(activations):
        _multiply[grid](
            activations,
            positions,
            output,
            num_units,
            factor,
            threshold,
            seed,
            layer,
            first_block,
            _EIGHTS_PER_PROGRAM,
            num_warps=_NUM_WARPS,
        )
    return output


drop.register_fake(lambda activations, *_: torch.empty_like(activations))


def _keep_settings(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, positions, *ctx.settings = inputs
    ctx.save_for_backward(positions)


def _drop_gradient(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    return drop(gradient.contiguous(), *ctx.saved_tensors, *ctx.settings), None, None, None, None, None, None


drop.register_autograd(_drop_gradient, setup_context=_keep_settings)


@triton.jit(do_not_specialize=["threshold", "seed", "layer", "first_block"])
def _multiply(
    input_ptr: tl.tensor,
    positions_ptr: tl.tensor,
    output_ptr: tl.tensor,
    num_units: tl.tensor,
    factor: tl.tensor,
    threshold: tl.tensor,
    seed: tl.int64,
    layer: tl.tensor,
    first_block: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
    sample = tl.program_id(0).to(tl.int64)  # times the units, this may exceed 31 bits
    eight = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    position = tl.load(positions_ptr + sample)
    words = tl.philox(
        seed, first_block + eight, layer.to(tl.int32), position.to(tl.int32), (position >> 32).to(tl.int32)
    )
    dtype = input_ptr.dtype.element_ty
    survivor = tl.cast(factor, dtype).to(tl.float32)
    factors: tl.tuple = ()
    for place in tl.static_range(8):
        half = (words[place // 2] >> (16 * (place % 2))) & 0xFFFF
        factors += (tl.where(half >= threshold, survivor, 0.0),)
    unit = eight[:, None] * 8 + tl.arange(0, 8)[None, :]
    place_in_memory = sample * num_units + unit
    values = tl.load(input_ptr + place_in_memory, mask=unit < num_units)
    tl.store(
        output_ptr + place_in_memory, (values.to(tl.float32) * join_columns(factors)).to(dtype), mask=unit < num_units
    )
