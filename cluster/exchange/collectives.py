"""Collective operations of torch.distributed under one name each, whatever the version of torch."""

import gc
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.distributed.nn.functional  # loaded once there is a process group, it would hold it as a default argument
from torch import Tensor

# torch 2.14 warns of the second name, the only one that torch 2.9 knows.
_gather = dist.all_gather_single if hasattr(dist, "all_gather_single") else dist.all_gather_into_tensor


@dataclass(frozen=True)
class Gathering:
    """Rows that are on their way.

    Attributes:
        gathered: Rows of all workers, valid after `wait`.
        sent: Rows of this worker, which must live until then.
        work: Handle of the operation.
    """

    gathered: Tensor
    sent: Tensor
    work: dist.Work

    def wait(self) -> Tensor:
        """Return the rows of all workers, in rank order, once they have arrived."""
        self.work.wait()
        return self.gathered


def gather_samples(parts: Sequence[Tensor], num_rows: int) -> Gathering:
    """Begin to gather rows of all workers; every worker calls this.

    Args:
        parts: Rows of this worker, (rows, ...) each.
        num_rows: Number of rows that each worker sends: fewer are padded with zeros.
    """
    first = parts[0]
    missing = num_rows - sum(len(part) for part in parts)
    if missing:
        parts = [*parts, first.new_zeros(missing, *first.shape[1:])]
    sent = parts[0].contiguous() if len(parts) == 1 else torch.cat(list(parts))
    gathered = sent.new_empty(dist.get_world_size() * num_rows, *sent.shape[1:])
    work = _gather(gathered, sent, async_op=True)
    assert work is not None
    return Gathering(gathered, sent, work)


def all_to_all(pieces: Sequence[Tensor], shapes: Sequence[Sequence[int]]) -> list[Tensor]:
    """Send a piece to each worker, and receive one from each; every worker calls this.

    Args:
        pieces: Piece for each worker, in rank order.
        shapes: Shape of the piece that comes from each worker, in rank order.
    """
    sent, sizes = torch.cat([piece.flatten() for piece in pieces]), [math.prod(shape) for shape in shapes]
    received = sent.new_empty(sum(sizes))
    dist.all_to_all_single(received, sent, sizes, [piece.numel() for piece in pieces])
    return [values.view(*shape) for values, shape in zip(received.split(sizes), shapes, strict=True)]


def leave_process_group() -> None:
    """Leave the process group, and end the threads of gloo.

    They may still hold tensors of the last exchanges. If they let go of them as Python ends, the process is aborted
    after its work is done (pytorch/pytorch#179291). They live as long as an object refers to the group, such as a model
    of DistributedDataParallel in a cycle of references.
    """
    dist.destroy_process_group()
    gc.collect()
