"""A second way to exchange gradients, for tests: each is summed after the backward pass, by hand."""

import contextlib
from typing import Any

import torch.distributed as dist
from torch import nn

from cluster.exchange.base import Exchange
from pipeline.online.order import RankShare


class ByHand(Exchange):
    """Sums the gradients when a step's backward passes are through; keeps how often each rank did so."""

    keeps_state = True

    name = "by hand"

    def __init__(self, share: RankShare) -> None:
        super().__init__(share)
        self._num_exchanges = 0

    def wrap(self, model: nn.Module) -> nn.Module:
        self._model = model
        return model

    @property
    def loss_scale(self) -> float:
        return 1 / self.share.global_batch_size

    def accumulating(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def finish(self) -> None:
        self._num_exchanges += 1
        if self.world_size > 1:
            for parameter in self._model.parameters():
                dist.all_reduce(parameter.grad)

    def state_dict(self) -> dict[str, Any]:
        return {"rank": self.rank, "num_exchanges": self._num_exchanges}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        assert state["rank"] == self.rank
        self._num_exchanges = state["num_exchanges"]
