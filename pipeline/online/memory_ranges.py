"""Hashes and read-ahead of many byte ranges, each in a single call that leaves Python's lock to other threads.

The thread that reads samples shares the lock with the one that launches the training step. If it took the lock once per
sample, each time it might wait as long as Python lets another thread keep the lock: 5 ms.
"""

import ctypes
import functools
import mmap
from typing import Any

import numba
import numpy as np
import xxhash
from numba import types

from pipeline.online.compiled import compiled
from pipeline.system.xxhash_quirks import HASH_TYPE, CFunction, xxh3_64_function

_HASH = xxh3_64_function()
_ADVICE_TYPE = types.int32(types.uint64, types.uint64, types.int32)
_MADVISE = CFunction(ctypes.CDLL(None).madvise, _ADVICE_TYPE)
_UINT64, _INT64 = types.uint64[::1], types.int64[::1]


def hash_ranges(addresses_N: np.ndarray, lengths_N: np.ndarray) -> np.ndarray:
    """Return the XXH3-64 hash of each range of memory, uint64 (N,).

    Args:
        addresses_N: Address of each range, uint64; the memory must stay where it is until this returns.
        lengths_N: Length of each range in bytes, int64.
    """
    hashes_N = np.empty(len(addresses_N), dtype=np.uint64)
    if _HASH is not None:
        _compiled_hash()(_HASH, addresses_N, lengths_N, hashes_N)
        return hashes_N
    for place, (address, length) in enumerate(zip(addresses_N.tolist(), lengths_N.tolist(), strict=True)):
        content = (ctypes.c_char * length).from_address(address) if length else b""
        hashes_N[place] = xxhash.xxh3_64_intdigest(content)
    return hashes_N


def read_ahead(addresses_N: np.ndarray, lengths_N: np.ndarray) -> None:
    """Ask the kernel to read ranges of memory-mapped files; the arguments are those of `hash_ranges`."""
    _compiled_advice()(_MADVISE, addresses_N, lengths_N, mmap.PAGESIZE, mmap.MADV_WILLNEED)


def _hash_ranges(hash_bytes: Any, addresses_N: Any, lengths_N: Any, hashes_N: Any) -> None:
    for place in range(len(addresses_N)):
        hashes_N[place] = hash_bytes(addresses_N[place], np.uint64(lengths_N[place]))


def _read_ahead(madvise: Any, addresses_N: Any, lengths_N: Any, page_size: Any, advice: Any) -> None:
    for place in range(len(addresses_N)):
        if lengths_N[place] > 0:
            skipped = addresses_N[place] % np.uint64(page_size)  # the kernel takes whole pages
            madvise(addresses_N[place] - skipped, np.uint64(lengths_N[place]) + skipped, advice)


@functools.cache
def _compiled_hash() -> Any:
    signature = types.void(types.FunctionType(HASH_TYPE), _UINT64, _INT64, _UINT64)
    return compiled(functools.partial(numba.njit, signature, nogil=True), _hash_ranges)


@functools.cache
def _compiled_advice() -> Any:
    signature = types.void(types.FunctionType(_ADVICE_TYPE), _UINT64, _INT64, types.int64, types.int32)
    return compiled(functools.partial(numba.njit, signature, nogil=True), _read_ahead)
