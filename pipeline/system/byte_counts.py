"""Numbers of bytes as people read them, and those that Ray and NCCL need free on a machine. Standard library only."""

SHARED_MEMORY_BYTES_PER_GPU = 64 * 2**20
"""What NCCL may take of /dev/shm.

It makes segments of 6 to 14 MB for pairs of neighbouring GPUs; Docker's default of 64 MB was too little for four
(NVIDIA/nccl#342, #1518).
"""
TEMPORARY_FILES_BYTES = 10**9
"""Ray's logs and the unpacked upload; Ray itself complains when a disk is 95 % full."""


def readable_bytes(num_bytes: float) -> str:
    """Return a number of bytes with three digits and its unit: `12.3 MB`."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if num_bytes < 999.5:
            return f"{three_digits(num_bytes)} {unit}"
        num_bytes /= 1000
    return f"{three_digits(num_bytes)} TB"


def three_digits(value: float) -> str:
    """Return a number with three digits or more, and without an exponent."""
    return f"{value:,.0f}" if value >= 99.95 else f"{value:.3g}"
