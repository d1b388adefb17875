"""Each worker trains on its own for k steps, then the weights of all are averaged: torch's `PostLocalSGDOptimizer`.

Each worker sends and receives 2 (w - 1) / w 4 n / k bytes per step, for w workers and n weights of 4 bytes: a k-th of
all-reduce's. In the first steps, gradients can be all-reduced instead (Lin et al., Don't use large mini-batches,
use local SGD, 2020).

Trade-off: lossy, and so a field of the recipe. Between two averages the workers' weights differ; evaluations,
checkpoints and stops wait for the next one, and the run's last step has one. An average does not overlap with
computation. Each worker has momentum of its own, which is not averaged: a checkpoint grows by the optimiser's state for
each further worker, and on another number of workers all go on with the first one's. Batch normalisation still
exchanges its statistics at each step.

A worker's gradient is w / G times its samples' sum, so with k = 1 and without momentum the result would be that of
all-reduce. The hook only keeps gradients apart; the optimiser averages (without it, pytorch/pytorch#74157 lost 7 points
of accuracy). torch's `PeriodicModelAverager` counts from the start of a process, and replaces the weights by tensors of
another memory format, so the average is our own.
"""

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.distributed.algorithms.model_averaging.averagers import ModelAverager
from torch.distributed.optim import PostLocalSGDOptimizer
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from cluster.exchange.allreduce import AllReduce
from pipeline.online.order import RankShare


class LocalSgd(AllReduce):
    """Averages of the weights every few steps; with a single worker nothing is exchanged.

    Args:
        share: See `Exchange`.
        num_steps: Number of steps from one average to the next, k.
        num_exact_steps: Number of steps whose gradients are all-reduced first.
        last_step: Number of steps of the run.
    """

    keeps_state = True
    has_own_optimizers = True
    without_state = "all workers go on with the first worker's momentum"

    def __init__(self, share: RankShare, num_steps: int, num_exact_steps: int, last_step: int) -> None:
        super().__init__(share)
        self.name = f"local SGD {num_steps}"
        self._num_steps, self._num_exact_steps, self._last_step = num_steps, num_exact_steps, last_step
        self._optimizer: Optimizer | None = None
        self._own_state: dict[str, Any] = {}

    def begin(self, step: int) -> None:
        """Take note of the step, which decides when the weights are averaged."""
        self._step = step

    def wrap_optimizer(self, optimizer: Optimizer) -> Optimizer:
        """Return an optimiser that averages the weights after its steps, when it is time."""
        if self.world_size == 1:
            return optimizer
        self._optimizer = optimizer
        return _AveragingOptimizer(optimizer, _Averager(self), self._own_state)

    @property
    def has_equal_weights(self) -> bool:
        """Whether the latest step ended with an average, or with an all-reduced gradient."""
        return self.world_size == 1 or self._step <= self._num_exact_steps or self._is_time

    def finish_update(self, parameters: Iterable[nn.Parameter]) -> None:
        """Count a step, and average the weights if it is time."""
        self._step += 1
        if self._step > self._num_exact_steps and self._is_time:
            _average(parameters, self.world_size)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of this rank's optimiser; nothing on the first one, whose state checkpoints have anyway."""
        if self.rank == 0 or self._optimizer is None or self._step <= self._num_exact_steps:
            return {}
        state: dict[str, Any] = self._optimizer.state_dict()["state"]
        return {"optimizer": _on_cpu(state)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Keep the state for the optimiser, which is made later."""
        self._own_state = {"state": state["optimizer"]} if state else {}

    @property
    def _is_time(self) -> bool:
        return self._step % self._num_steps == 0 or self._step == self._last_step

    def _hook_into(self, parallel: DistributedDataParallel) -> None:
        parallel.register_comm_hook(None, self._combine)

    def _combine(self, state: None, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
        """Average a bucket of gradients in the run's first part; leave it alone after that."""
        if self._step < self._num_exact_steps:
            group = dist.group.WORLD
            assert group is not None
            return allreduce_hook(group, bucket)
        alone: torch.futures.Future[torch.Tensor] = torch.futures.Future()
        alone.set_result(bucket.buffer())
        return alone


class _Averager(ModelAverager):
    """What `PostLocalSGDOptimizer` calls after each step."""

    def __init__(self, exchange: LocalSgd) -> None:
        super().__init__()
        self._exchange = exchange

    def average_parameters(self, params: Iterable[dict[str, Any]]) -> None:
        self._exchange.finish_update(parameter for group in params for parameter in group["params"])


class _AveragingOptimizer(PostLocalSGDOptimizer):
    """An optimiser with averages of the weights, which restores this rank's own state.

    Args:
        optimizer: Optimiser of the steps.
        averager: What averages the weights.
        own_state: Entries of this rank that replace those of a restored state, which is the first worker's.
    """

    def __init__(self, optimizer: Optimizer, averager: _Averager, own_state: dict[str, Any]) -> None:
        super().__init__(optimizer, averager)
        self._own_state = own_state

    def state_dict(self) -> dict[str, Any]:
        """Return the optimiser's own state: the averages depend on the run's step alone."""
        return self.optim.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.optim.load_state_dict(state_dict | self._own_state)
        # torch's own version keeps the old groups, whose learning rate no longer counts.
        self.param_groups = self.optim.param_groups


@torch.no_grad()
def _average(parameters: Iterable[nn.Parameter], world_size: int) -> None:
    """Replace weights by their means over the workers, in place, so that they keep their memory format."""
    works = [dist.all_reduce(parameter.div_(world_size), async_op=True) for parameter in parameters]
    for work in works:
        work.wait()


def _on_cpu(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.cpu()
    return {key: _on_cpu(item) for key, item in value.items()} if isinstance(value, dict) else value
