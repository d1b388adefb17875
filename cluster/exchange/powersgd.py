"""Gradient matrices are sent as products of two thin ones: PyTorch's `powerSGD_hook`, after Vogels et al. 2019.

A gradient M (n, m) is approximated by P Q^T of rank r: all workers sum M Q, make its columns orthonormal (P), and
average M^T P (Q), with which the next step begins. What the approximation leaves out is kept and added to the next
gradient (error feedback). Each worker sends and receives 2 (w - 1) / w 4 r (n + m) bytes per step for such a matrix,
for w workers. Biases, and matrices that would not shrink to half, are summed as they are, as are all gradients of the
first steps. For `alexnet_2012` at rank 4 that is 0.61 MB on 2 workers and 1.06 MB on 8, a 400th of all-reduce's.

Trade-off: lossy, and so a field of the recipe. DistributedDataParallel has ONE bucket, since with several, torch's hook
on gloo mixes up their sums and aborts: so nothing is sent before the backward pass has ended. A step takes three more
products per matrix. What a worker has left out is its own: memory and, per worker, checkpoints grow by the size of all
gradients, and with another number of workers it is reset. Each worker orthogonalises by itself, so unlike CPUs may
round differently: `cluster/exchange/replicas.py` compares the weights.

torch's hook keeps its memory by the position of gradients in the bucket, which DistributedDataParallel rearranges after
a launch's first step. So it gets all gradients in the model's order instead, as one buffer; then a resumed run goes on
bit for bit.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState, powerSGD_hook
from torch.nn.parallel import DistributedDataParallel

from cluster.exchange.allreduce import AllReduce
from pipeline.command import InputError
from pipeline.online.order import RankShare

_EPSILON = 1e-8  # torch's suggestion against a division by zero where gradients vanish
_BUCKET = 0  # index of the only one
# Attributes of PowerSGDState that are not documented, as observed in torch 2.9 to 2.14.
_MEMORIES = ("error_dict", "p_memory_dict", "q_memory_dict")  # tensors by the index of the bucket
_STEP = "iter"


class PowerSgd(AllReduce):
    """Exchange of low-rank approximations with error feedback; with a single worker nothing is exchanged.

    Args:
        share: See `Exchange`.
        rank: Rank of the approximations, r.
        num_exact_steps: Number of steps, at least 2, whose gradients are all-reduced first.

    Raises:
        InputError: This version of torch keeps its memory in a way that is not known here.
    """

    keeps_state = True
    without_state = "PowerSGD's error feedback begins anew"
    bucket_megabytes = 2**20  # one bucket

    def __init__(self, share: RankShare, rank: int, num_exact_steps: int) -> None:
        super().__init__(share)
        self.name = f"powersgd rank {rank}"
        self._kept: dict[str, Tensor] = {}
        self._state = PowerSGDState(None, rank, num_exact_steps, orthogonalization_epsilon=_EPSILON)
        if not all(hasattr(self._state, name) for name in (*_MEMORIES, _STEP)):
            raise InputError(
                f"torch {torch.__version__} keeps PowerSGD's memory in an unknown way; install torch 2.14, or use "
                "--gradient-compression bf16 in a new --run"
            )

    def begin(self, step: int) -> None:
        """Take note of the step, which decides whether gradients are compressed."""
        setattr(self._state, _STEP, step)

    def wrap(self, model: nn.Module) -> nn.Module:
        """Return the model inside DistributedDataParallel, or the model itself if there is a single worker."""
        self._parameters = list(model.parameters())
        return super().wrap(model)

    def state_dict(self) -> dict[str, Any]:
        """Return what the approximations left out so far, and the factors: once there are any."""
        memories = {name: getattr(self._state, name) for name in _MEMORIES}
        return {name: memory[_BUCKET].cpu() for name, memory in memories.items() if _BUCKET in memory}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Keep the state for the hook, which is registered later."""
        self._kept = state

    def _hook_into(self, parallel: DistributedDataParallel) -> None:
        if self._kept:
            device = self._parameters[0].device
            for name, memory in self._kept.items():
                getattr(self._state, name)[_BUCKET] = memory.to(device, copy=True)
            self._kept = {}
        parallel.register_comm_hook(None, self._combine)

    def _combine(self, state: None, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
        """Average a bucket of gradients: exactly in the run's first part, by approximations after that."""
        if getattr(self._state, _STEP) < self._state.start_powerSGD_iter:
            return powerSGD_hook(self._state, bucket)
        ordered = _OrderedBucket(bucket, self._parameters)
        done = powerSGD_hook(self._state, cast(dist.GradBucket, ordered))
        return done.then(ordered.put_back)


class _OrderedBucket:
    """Copies of a bucket's gradients in the model's order, in the form in which torch's hook reads a bucket.

    Args:
        bucket: The only bucket.
        parameters: Parameters of the model, in its order.
    """

    def __init__(self, bucket: dist.GradBucket, parameters: Sequence[nn.Parameter]) -> None:
        self._bucket_buffer = bucket.buffer()
        gradients = dict(zip(bucket.parameters(), bucket.gradients(), strict=True))
        self._originals = [gradients[parameter] for parameter in parameters if parameter in gradients]
        self._buffer = torch.cat([gradient.flatten() for gradient in self._originals])
        pieces = self._buffer.split([gradient.numel() for gradient in self._originals])
        self._gradients = [piece.view(own.shape) for piece, own in zip(pieces, self._originals, strict=True)]

    def index(self) -> int:
        return _BUCKET

    def is_last(self) -> bool:
        return True

    def buffer(self) -> Tensor:
        return self._buffer

    def gradients(self) -> list[Tensor]:
        return self._gradients

    def put_back(self, done: torch.futures.Future[Tensor]) -> Tensor:
        """Copy the gradients back once the hook is done with them; return the bucket's own buffer."""
        done.wait()
        for own, gradient in zip(self._originals, self._gradients, strict=True):
            own.copy_(gradient)
        return self._bucket_buffer
