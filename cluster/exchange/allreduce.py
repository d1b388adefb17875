"""Gradients are averaged over the workers during the backward pass, by PyTorch's DistributedDataParallel.

Each worker sends and receives 2 (w - 1) / w 4 n bytes per step, with a ring of w workers and n gradients of 4 bytes.
For AlexNet's 61 million gradients that is 244 MB on 2 workers and 427 MB on 8.

Trade-off: this is exact up to the order of floating-point sums, works for any model, and overlaps the exchange with the
backward pass; but 96 % of AlexNet's bytes belong to three dense layers, and their gradients' low rank is not exploited.
"""

import contextlib
import inspect
from typing import Any, ClassVar

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from cluster.exchange.base import Exchange
from pipeline.online.order import RankShare

# Buffers are the same on all workers by themselves (`model/batch_norm.py`); sending the first worker's would cost an
# exchange before each forward pass. torch 2.14 warns of the option's old name, the only one that torch 2.9 knows.
_IS_RENAMED = "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
KEEP_BUFFERS: dict[str, Any] = {"forward_sync_buffers" if _IS_RENAMED else "broadcast_buffers": False}


class AllReduce(Exchange):
    """Exchange by DistributedDataParallel; with a single worker nothing is exchanged."""

    name = "allreduce"
    bucket_megabytes: ClassVar[int | None] = None  # of gradients that are sent together; None: torch's default

    def __init__(self, share: RankShare) -> None:
        super().__init__(share)
        self._parallel: DistributedDataParallel | None = None

    def wrap(self, model: nn.Module) -> nn.Module:
        """Return the model inside DistributedDataParallel, or the model itself if there is a single worker."""
        if self.world_size == 1:
            return model
        self._parallel = DistributedDataParallel(
            model,
            gradient_as_bucket_view=True,
            bucket_cap_mb=self.bucket_megabytes,
            init_sync=False,  # the learner compares the weights, and says what differs
            **KEEP_BUFFERS,
        )
        self._hook_into(self._parallel)
        return self._parallel

    def _hook_into(self, parallel: DistributedDataParallel) -> None:
        """Let another function than torch's own combine the gradients; by default, none does."""

    @property
    def loss_scale(self) -> float:
        """Factor w / G: DistributedDataParallel divides the sum over w workers by w."""
        return self.world_size / self.share.global_batch_size

    def accumulating(self) -> contextlib.AbstractContextManager[None]:
        """Return DistributedDataParallel's `no_sync`."""
        return contextlib.nullcontext() if self._parallel is None else self._parallel.no_sync()
