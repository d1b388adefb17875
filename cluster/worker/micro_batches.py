"""Where a worker's slice of the global batch is cut when it does not fit into memory at once."""

from pipeline.command import InputError


def cut_into_micro_batches(num_samples: int, micro_batch_size: int | None, group_size: int = 1) -> list[slice]:
    """Cut a slice of the global batch into pieces that pass through the model one after another.

    Args:
        num_samples: Of the slice, at least 1.
        micro_batch_size: Most samples of a piece; None: one piece.
        group_size: Samples that must stay together; no piece but the last ends within a group.

    Returns:
        The pieces in their order: full ones, and what remains.

    Raises:
        InputError: A group alone is larger than a piece may be.
    """
    if micro_batch_size is None:
        return [slice(0, num_samples)]
    check_micro_batch_size(micro_batch_size, group_size)
    length = micro_batch_size // group_size * group_size
    return [slice(begin, min(begin + length, num_samples)) for begin in range(0, num_samples, length)]


def check_micro_batch_size(micro_batch_size: int, group_size: int = 1) -> None:
    """Check that a piece of so many samples holds a group.

    Raises:
        InputError: It does not.
    """
    if micro_batch_size < group_size:
        raise InputError(f"--micro-batch-size is {micro_batch_size}; it must be at least {group_size}")
