"""Gradients of the parameters that an exchange does not treat itself: summed over the workers during backward."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from cluster.exchange.allreduce import KEEP_BUFFERS

_BUCKET_MEGABYTES = 1  # about one convolution of AlexNet, so that only the first one's gradient is sent after backward


def replicated(model: nn.Module, others: Collection[nn.Parameter]) -> nn.Module:
    """Return a module that also sums a model's gradients, except those of some parameters, over the workers.

    Args:
        model: Model whose weights are the same on all workers.
        others: Parameters of the model that are left alone.

    Returns:
        A DistributedDataParallel, or the model itself if no parameter that requires gradients remains.
    """
    excluded = set(others)
    if not any(parameter.requires_grad and parameter not in excluded for parameter in model.parameters()):
        return model
    with _without_gradients(excluded):  # DistributedDataParallel takes the parameters that require gradients
        parallel = DistributedDataParallel(
            model, gradient_as_bucket_view=True, bucket_cap_mb=_BUCKET_MEGABYTES, init_sync=False, **KEEP_BUFFERS
        )
    parallel.register_comm_hook(None, _sum)
    return parallel


@contextmanager
def _without_gradients(parameters: Collection[nn.Parameter]) -> Iterator[None]:
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


def _sum(state: None, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
    """Sum a bucket over the workers, where DistributedDataParallel's own hook takes the mean."""
    future: torch.futures.Future[Any] = dist.all_reduce(bucket.buffer(), async_op=True).get_future()
    return future.then(lambda done: done.value()[0])
