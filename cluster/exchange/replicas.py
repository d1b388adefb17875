"""A comparison of the copies of the weights that the workers have, and its remedy.

Workers keep equal copies because they make the same updates. With `factors`, each computes the dense layers' gradients
itself, so CPUs that round differently drift apart; with any exchange, so does a worker whose memory is faulty. A
comparison costs one pass over the weights and an exchange of two numbers per tensor.
"""

import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from pipeline.command import UserError


@dataclass(frozen=True)
class Drift:
    """How far copies of the weights had drifted apart.

    Attributes:
        num_tensors: Number of tensors that differed.
        largest: Largest deviation from the first worker's tensor, norm of the difference to norm.
    """

    num_tensors: int
    largest: float


class ReplicasDiffer(UserError):
    """A worker's weights differ from the first worker's by more than rounding."""


def align_replicas(tensors: Mapping[str, Tensor]) -> Drift | None:
    """Compare tensors between all workers, and copy the first worker's where they differ; every worker calls this.

    Deviations count as rounding up to the root of the dtype's precision, which is half of its digits.

    Args:
        tensors: Tensors by name; the same names, shapes and dtypes on all workers.

    Returns:
        What differed; None: nothing.

    Raises:
        ReplicasDiffer: A tensor differs by more than rounding.
    """
    compared = {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point() and tensor.numel()}
    if not compared:
        return None
    digests_N2 = torch.stack([_digest(tensor) for tensor in compared.values()]).cpu()
    extremes_2N2 = torch.stack([digests_N2, -digests_N2])
    dist.all_reduce(extremes_2N2, dist.ReduceOp.MAX)
    differs_N = (extremes_2N2[0] != -extremes_2N2[1]).any(dim=1).tolist()
    differing = {name: tensor for (name, tensor), differs in zip(compared.items(), differs_N, strict=True) if differs}
    if not differing:
        return None
    largest = 0.0
    for name, tensor in differing.items():
        first = _of_first(tensor)
        deviations_R = torch.zeros(dist.get_world_size(), dtype=torch.float64)
        deviations_R[dist.get_rank()] = _deviation(tensor, first)
        dist.all_reduce(deviations_R)
        deviations = deviations_R.nan_to_num(nan=torch.inf).tolist()
        if max(deviations) > torch.finfo(tensor.dtype).eps ** 0.5:
            raise ReplicasDiffer(_described(name, deviations, torch.finfo(tensor.dtype).eps ** 0.5))
        largest = max(largest, *deviations)
        tensor.detach().copy_(first)
    return Drift(len(differing), largest)


def copy_from_first(tensors: Mapping[str, Tensor]) -> None:
    """Copy tensors from the first worker to all others; every worker calls this with the same names and shapes."""
    for name in sorted(tensors):
        tensors[name].detach().copy_(_of_first(tensors[name]))


def _described(name: str, deviations: Sequence[float], bound: float) -> str:
    """Return a message that names a tensor and the workers that deviate from worker 0; every worker calls this."""
    places: list[str] = [""] * len(deviations)
    dist.all_gather_object(places, socket.gethostname())
    deviating = [rank for rank, deviation in enumerate(deviations) if deviation > bound]
    if 2 <= len(deviating) == len(deviations) - 1:
        who = f"worker 0 (on {places[0]}) has other weights than all others"
    else:
        who = ", ".join(f"worker {rank} (on {places[rank]})" for rank in deviating)
        who += f" has other weights than worker 0 (on {places[0]})"
    return (
        f"{who}: {name} differs by {max(deviations):.1e} of its norm, more than rounding can explain. A faulty memory "
        "or processor is the likely cause: leave that node out. The same command goes on from the latest checkpoint"
    )


def _of_first(tensor: Tensor) -> Tensor:
    """Return the first worker's tensor."""
    values = tensor.detach().clone(memory_format=torch.contiguous_format)
    dist.broadcast(values, src=0)
    return values


def _digest(tensor: Tensor) -> Tensor:
    """Return two numbers that almost certainly differ if any bit of two tensors does, int64 (2,)."""
    bits = tensor.detach().view({2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.itemsize])
    # The sum alone would miss two roundings in opposite directions. Products overflow, the same way everywhere.
    return torch.stack([bits.sum(dtype=torch.int64), (bits * bits).sum(dtype=torch.int64)])


def _deviation(tensor: Tensor, first: Tensor) -> float:
    difference = torch.linalg.vector_norm((tensor.detach() - first).double())
    return float(difference / torch.linalg.vector_norm(first.double()).clamp_min(torch.finfo(tensor.dtype).tiny))
