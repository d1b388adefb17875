"""Counter-based dropout on a GPU in one kernel, which draws the masks of `model/dropout.py` where they are used.

Activations are read once and written once. The gradient passes through the same kernel, which draws the masks again, so
nothing is kept for backward. Triton's own Philox4x32-10 is the generator.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCKS = 128  # blocks of 8 units in a program
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@torch.library.custom_op("alexnet::counted_dropout", mutates_args=())  # opaque to torch.compile
def drop(activations: Tensor, positions: Tensor, threshold: int, scale: float, seed: int, layer: int) -> Tensor:
    """Drop units and scale the others.

    Args:
        activations: (B, ...), contiguous, of one of `DTYPES`.
        positions: int64 (B,), not negative.
        threshold: A unit survives if its 16 random bits are at least this number.
        scale: Factor of the survivors, exact in the dtype of the activations.
        seed: Seed of the masks, as a signed 64-bit integer.
        layer: Number of the dropout layer within the model.
    """
    output = torch.empty_like(activations)
    num_samples = len(activations)
    num_units = activations.numel() // max(num_samples, 1)
    if output.numel():
        grid = num_samples, triton.cdiv(num_units, 8 * _BLOCKS)
        with torch.cuda.device_of(activations):
            _drop[grid](activations, output, positions, num_units, threshold, scale, seed, layer, BLOCKS=_BLOCKS)
    return output


@drop.register_fake
def _(activations: Tensor, *_: object) -> Tensor:
    return torch.empty_like(activations)


@triton.jit
def _drop(inputs, outputs, positions, num_units, threshold, scale, seed, layer, BLOCKS: tl.constexpr):
    sample = tl.program_id(0)
    position = tl.load(positions + sample)
    block = tl.program_id(1) * BLOCKS + tl.arange(0, BLOCKS)
    words = tl.philox(
        seed,
        block,
        tl.full((BLOCKS,), 0, tl.int32) + layer,
        tl.full((BLOCKS,), 0, tl.int32) + (position & 0xFFFFFFFF).to(tl.int32),
        tl.full((BLOCKS,), 0, tl.int32) + (position >> 32).to(tl.int32),
    )
    # Each word gives the bits of two units, its lower half first.
    even = tl.join(tl.join(words[0] & 0xFFFF, words[2] & 0xFFFF), tl.join(words[1] & 0xFFFF, words[3] & 0xFFFF))
    odd = tl.join(tl.join(words[0] >> 16, words[2] >> 16), tl.join(words[1] >> 16, words[3] >> 16))
    bits = tl.reshape(tl.join(tl.reshape(even, (BLOCKS, 4)), tl.reshape(odd, (BLOCKS, 4))), (BLOCKS, 8))
    unit = block[:, None] * 8 + tl.arange(0, 8)[None, :]
    offset = sample.to(tl.int64) * num_units + unit
    values = tl.load(inputs + offset, mask=unit < num_units).to(tl.float32)
    values *= tl.where(bits.to(tl.int32) >= threshold, scale, 0.0)
    tl.store(outputs + offset, values.to(outputs.dtype.element_ty), mask=unit < num_units)
