"""Vectors of consecutive values in Triton kernels: a thread loads each as a whole, and works on its parts in registers.

A block (BLOCK, WIDTH) comes from memory by loads of 16 bytes if WIDTH values have 16 bytes. Its columns, each a tensor
(BLOCK,), then stay in the registers of the same thread, so sums over neighbouring values need neither shared memory nor
shuffles. WIDTH is a power of two, at least 2.
"""

import triton
import triton.language as tl


@triton.jit
def split_columns(block: tl.tensor) -> tl.tuple:
    """Turn a block (BLOCK, WIDTH) into a tuple of its columns."""
    BLOCK: tl.constexpr = block.shape[0]
    WIDTH: tl.constexpr = block.shape[1]
    columns: tl.tuple = ()
    if WIDTH == 2:
        columns += tl.split(block)
    else:
        even, odd = tl.split(tl.reshape(block, (BLOCK, WIDTH // 2, 2)))
        evens = split_columns(even)
        odds = split_columns(odd)
        for place in tl.static_range(WIDTH // 2):
            columns += (evens[place], odds[place])
    return columns


@triton.jit
def join_columns(columns: tl.tuple) -> tl.tensor:
    """Turn a tuple of columns (BLOCK,) into a block (BLOCK, WIDTH)."""
    BLOCK: tl.constexpr = columns[0].shape[0]
    WIDTH: tl.constexpr = len(columns)
    if WIDTH == 2:
        block = tl.join(columns[0], columns[1])
    else:
        evens: tl.tuple = ()
        odds: tl.tuple = ()
        for place in tl.static_range(WIDTH // 2):
            evens += (columns[2 * place],)
            odds += (columns[2 * place + 1],)
        block = tl.reshape(tl.join(join_columns(evens), join_columns(odds)), (BLOCK, WIDTH))
    return block


@triton.jit
def copy_vector(source_ptr: tl.tensor, target_ptr: tl.tensor) -> None:
    """Copy eight values; the smallest kernel that uses all that the others use."""
    places = tl.arange(0, 1)[:, None] + tl.arange(0, 8)[None, :]
    columns = split_columns(tl.load(source_ptr + places).to(tl.float32))
    tl.store(target_ptr + places, join_columns(columns).to(target_ptr.dtype.element_ty))
