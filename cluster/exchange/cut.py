"""Tensors that are cut: each worker has a part, a range of one dimension."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from cluster.exchange.collectives import all_to_all

UNITS_TOGETHER = 8  # units that stay on one worker, as dropout's masks are computed for so many at once


@dataclass(frozen=True)
class Cut:
    """How a tensor is cut.

    Attributes:
        dim: Dimension that is cut.
        sizes: Size of each worker's part in it, in rank order.
    """

    dim: int
    sizes: tuple[int, ...]

    @classmethod
    def of_units(cls, dim: int, num_units: int, world_size: int) -> "Cut":
        """Cut a dimension of a layer's units as evenly as possible, at multiples of 8."""
        num_blocks = -(-num_units // UNITS_TOGETHER)
        ends = [rank * num_blocks // world_size * UNITS_TOGETHER for rank in range(world_size)] + [num_units]
        return cls(dim, tuple(ends[rank + 1] - ends[rank] for rank in range(world_size)))

    def first_of(self, rank: int) -> int:
        """Return the index at which a worker's part begins."""
        return sum(self.sizes[:rank])

    def parts(self, whole: Tensor) -> Sequence[Tensor]:
        """Return views of all workers' parts."""
        return whole.split(self.sizes, self.dim)

    def part(self, whole: Tensor, rank: int) -> Tensor:
        """Return a copy of a worker's part, which keeps nothing of the whole tensor in memory."""
        return self.parts(whole.detach())[rank].clone(memory_format=torch.contiguous_format)

    def shapes(self, like: Tensor) -> list[list[int]]:
        """Return the shapes of all workers' parts, given a tensor with the same other dimensions."""
        dim = self.dim % like.ndim
        return [[*like.shape[:dim], size, *like.shape[dim + 1 :]] for size in self.sizes]

    @torch.no_grad()
    def gathered(self, part: Tensor) -> Tensor:
        """Return the whole tensor on all workers; every worker calls this."""
        whole = self._empty(part)
        for rank, view in enumerate(self.parts(whole)):
            piece = part.contiguous() if rank == dist.get_rank() else view.new_empty(view.shape)
            dist.broadcast(piece, src=rank)
            view.copy_(piece)
        return whole

    @torch.no_grad()
    def collected(self, part: Tensor) -> Tensor:
        """Return the whole tensor on the first worker's CPU, and a part on the others; every worker calls this."""
        part = part.detach().cpu().contiguous()
        if dist.get_rank():
            dist.send(part, 0)
            return part
        whole = self._empty(part)
        for rank, view in enumerate(self.parts(whole)):
            piece = part if rank == 0 else view.new_empty(view.shape)
            if rank:
                dist.recv(piece, rank)
            view.copy_(piece)
        return whole

    def _empty(self, part: Tensor) -> Tensor:
        shape = list(part.shape)
        shape[self.dim] = sum(self.sizes)
        return part.new_empty(shape)


def recut(part: Tensor, old: Cut, new: Cut) -> Tensor:
    """Return this worker's part by another cut of the same tensor, in another dimension; every worker calls this."""
    pieces = new.parts(part)
    shapes = old.shapes(pieces[dist.get_rank()])
    return torch.cat(all_to_all(pieces, shapes), old.dim)


def scatter_sum(partial: Tensor, cut: Cut) -> Tensor:
    """Return this worker's part of the sum of all workers' tensors; every worker calls this.

    The sum is taken in rank order, at least in float32, which is then also the result's dtype.
    """
    pieces = cut.parts(partial)
    received = all_to_all(pieces, [pieces[dist.get_rank()].shape] * len(pieces))
    total = received[0].to(torch.promote_types(partial.dtype, torch.float32), copy=True)
    for piece in received[1:]:
        total += piece
    return total


def gather(part: Tensor, cut: Cut) -> Tensor:
    """Return the whole of a tensor that is cut; every worker calls this."""
    return torch.cat(all_to_all([part] * len(cut.sizes), cut.shapes(part)), cut.dim)
