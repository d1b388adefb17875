"""Blocks of eight consecutive values in Triton kernels: each thread loads one as a vector and works on its parts.

A block (BLOCK, 8) comes from memory by loads of 16 bytes (of 16-bit values). Its eight columns, each a tensor (BLOCK,),
stay in the registers of the same thread, so sums over neighbouring values need neither shared memory nor shuffles.
"""

import triton
import triton.language as tl


@triton.jit
def split_eight(block: tl.tensor) -> tl.tuple:
    """Turn a block (BLOCK, 8) into a tuple of its eight columns."""
    BLOCK: tl.constexpr = block.shape[0]
    even, odd = tl.split(tl.reshape(block, (BLOCK, 4, 2)))
    even_low, even_high = _halve(even, BLOCK)
    odd_low, odd_high = _halve(odd, BLOCK)
    value_0, value_4 = tl.split(even_low)
    value_2, value_6 = tl.split(even_high)
    value_1, value_5 = tl.split(odd_low)
    value_3, value_7 = tl.split(odd_high)
    return value_0, value_1, value_2, value_3, value_4, value_5, value_6, value_7


@triton.jit
def _halve(four: tl.tensor, BLOCK: tl.constexpr) -> tl.tuple:
    return tl.split(tl.reshape(four, (BLOCK, 2, 2)))


@triton.jit
def join_eight(values: tl.tuple) -> tl.tensor:
    """Turn eight columns (BLOCK,) into a block (BLOCK, 8)."""
    BLOCK: tl.constexpr = values[0].shape[0]
    even = tl.join(tl.join(values[0], values[4]), tl.join(values[2], values[6]))
    odd = tl.join(tl.join(values[1], values[5]), tl.join(values[3], values[7]))
    return tl.reshape(tl.join(tl.reshape(even, (BLOCK, 4)), tl.reshape(odd, (BLOCK, 4))), (BLOCK, 8))
