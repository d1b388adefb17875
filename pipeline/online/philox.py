"""Philox4x32-10, the counter-based generator of Random123, vectorised over counters in NumPy.

Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011). Integer arithmetic only, so the words are the
same on every processor and with every NumPy release, and the words of one sample are computed from its counter alone.
"""

import numpy as np

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (np.uint64(0x9E3779B9), np.uint64(0xBB67AE85))
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)
_NUM_ROUNDS = 10


def philox4x32(counters_N4: np.ndarray, key: tuple[int, int]) -> np.ndarray:
    """Return four random words for each counter.

    Args:
        counters_N4: Counters of four words each, uint32 (N, 4).
        key: Two 32-bit words.

    Returns:
        Words that are uniform over all 32-bit values, uint32 (N, 4).
    """
    c0, c1, c2, c3 = (counters_N4[:, i].astype(np.uint64) for i in range(4))
    k0, k1 = np.uint64(key[0]), np.uint64(key[1])
    for _ in range(_NUM_ROUNDS):
        product0, product1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            (product1 >> _HALF) ^ c1 ^ k0,
            product1 & _LOW,
            (product0 >> _HALF) ^ c3 ^ k1,
            product0 & _LOW,
        )
        k0, k1 = (k0 + _WEYL[0]) & _LOW, (k1 + _WEYL[1]) & _LOW
    return np.stack([c0, c1, c2, c3], axis=1).astype(np.uint32)


def split_words(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Split non-negative 64-bit integers into (low, high) uint32 words."""
    unsigned = np.asarray(values).astype(np.uint64)
    return (unsigned & _LOW).astype(np.uint32), (unsigned >> _HALF).astype(np.uint32)


def seed_key(seed: int) -> tuple[int, int]:
    """Return a 64-bit seed as the two words of a key."""
    low, high = split_words(np.array([seed], dtype=np.uint64))
    return int(low[0]), int(high[0])
