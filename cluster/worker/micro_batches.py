"""Division of a worker's slice of the global batch into pieces that fit into memory."""

from pipeline.command import InputError


def cut_into_micro_batches(num_samples: int, micro_batch_size: int | None, group_size: int = 1) -> list[slice]:
    """Cut a slice of the global batch into pieces that pass through the model one after another.

    Args:
        num_samples: Number of samples in the slice, at least 1.
        micro_batch_size: Maximum number of samples in a piece; None: one piece.
        group_size: Number of samples that must stay together; only the last piece may end within a group.

    Returns:
        The pieces in order: full ones, then the remainder.

    Raises:
        InputError: A group is larger than a piece may be.
    """
    if micro_batch_size is None:
        return [slice(0, num_samples)]
    check_micro_batch_size(micro_batch_size, group_size)
    length = micro_batch_size // group_size * group_size
    return [slice(begin, min(begin + length, num_samples)) for begin in range(0, num_samples, length)]


def check_micro_batch_size(micro_batch_size: int, group_size: int = 1) -> None:
    """Check that a piece of `micro_batch_size` samples can hold a whole group.

    Raises:
        InputError: It cannot.
    """
    if micro_batch_size < group_size:
        raise InputError(f"--micro-batch-size is {micro_batch_size}; it must be at least {group_size}")
