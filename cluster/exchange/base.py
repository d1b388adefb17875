"""The interface between a worker's training step and the exchange that combines the workers' gradients.

A step runs the wrapped model forward and backward, once for each of its micro-batches, and then updates the weights:

    model = exchange.wrap(model)
    with exchange.accumulating():
        (exchange.loss_scale(G) * loss_sum(micro_batch)).backward()     for all micro-batches but the last
    (exchange.loss_scale(G) * loss_sum(last)).backward()
    exchange.finish()
    optimizer.step()

Each parameter's `grad` is then the mean over the global batch of G samples, even if the workers' slices are uneven. The
exchange may work in hooks, in its own layers or at the end.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from torch import nn


class Exchange(ABC):
    """A method to combine gradients; the module that defines it states its bytes per step and its trade-off.

    Attributes:
        keeps_state: Whether checkpoints contain a state of this exchange for each rank.
        rank: Rank of this worker.
        world_size: Number of workers. With a single worker, nothing is exchanged and there is no process group.
    """

    keeps_state = False

    def __init__(self, rank: int, world_size: int) -> None:
        self.rank, self.world_size = rank, world_size

    @abstractmethod
    def wrap(self, model: nn.Module) -> nn.Module:
        """Return the module that a step calls in place of `model`; it has the same weights."""

    @abstractmethod
    def loss_scale(self, global_batch_size: int) -> float:
        """Return the factor of a worker's summed loss that makes the exchanged gradient the mean."""

    @abstractmethod
    def accumulating(self) -> AbstractContextManager[None]:
        """Return a context in which a backward pass adds to this worker's gradient without an exchange."""

    def finish(self) -> None:  # noqa: B027  # most have nothing to do
        """Complete the exchange after a step's last backward pass; by default there is nothing left to do."""

    def state_dict(self) -> dict[str, Any]:
        """Return what this rank keeps from step to step beside the weights; every rank's goes into the checkpoint.

        Plain containers, numbers and tensors on the CPU: each rank's is sent to all, and checkpoints hold nothing else.
        """
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what this rank's `state_dict` returned on as many workers; called before `wrap`."""
        raise NotImplementedError(f"{type(self).__name__} keeps no state")


MakeExchange = Callable[[int, int], Exchange]
"""Function (rank, number of workers) -> the exchange of a worker."""
