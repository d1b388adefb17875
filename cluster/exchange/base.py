"""The interface between a worker's training step and the exchange that combines the workers' gradients.

A step runs the wrapped model forward and backward, once for each of its micro-batches, and then updates the weights:

    wrapped = exchange.wrap(model)
    optimizer = exchange.wrap_optimizer(build_optimizer(model, config, exchange.squared_norms))
    with exchange.accumulating():
        (exchange.loss_scale * loss_sum(micro_batch)).backward()     for all micro-batches but the last
    (exchange.loss_scale * loss_sum(last)).backward()
    exchange.finish()
    optimizer.step()

Each parameter's `grad` is then the mean over the global batch, even if the workers' slices are uneven. The exchange may
work in hooks, in its own layers or at the end. Exact exchanges differ only in the order of floating-point sums.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.optim import Optimizer

from model.lars import squared_norms
from pipeline.online.order import RankShare


class Exchange(ABC):
    """A method to combine gradients; the module that defines it states its bytes per step and its trade-off.

    Args:
        share: The worker's part of each global batch. With a single worker, nothing is exchanged and there is no
            process group.

    Attributes:
        name: Name of the strategy, with its settings.
        keeps_state: Whether checkpoints contain a state of this exchange for each rank.
        without_state: What it means that the state can't be restored, for the log.
        has_own_optimizers: Whether the workers' optimisers differ in their state.
        cuts_weights: Whether a worker has only parts of some weights: then every worker calls `whole` for a checkpoint.
    """

    name: str
    keeps_state: ClassVar[bool] = False
    without_state: ClassVar[str] = "the exchange of gradients begins anew"
    has_own_optimizers: ClassVar[bool] = False
    cuts_weights: ClassVar[bool] = False

    def __init__(self, share: RankShare) -> None:
        self.share = share
        self.rank, self.world_size = share.rank, share.world_size

    def begin(self, step: int) -> None:  # noqa: B027  # most do the same in every step
        """Take note of the number of steps that the run has made so far; called before `wrap`."""

    @abstractmethod
    def wrap(self, model: nn.Module) -> nn.Module:
        """Return the module that a step calls in place of `model`.

        The weights are restored, and the same on all workers. An exchange that cuts weights replaces the layers of
        `model` by layers with this worker's parts; so the optimiser is built afterwards.
        """

    def wrap_optimizer(self, optimizer: Optimizer) -> Optimizer:
        """Return the optimiser whose `step` updates the weights; by default the same one."""
        return optimizer

    @property
    @abstractmethod
    def loss_scale(self) -> float:
        """Factor of a worker's summed loss that makes the exchanged gradient the mean."""

    @abstractmethod
    def accumulating(self) -> AbstractContextManager[None]:
        """Return a context in which a backward pass adds to this worker's gradient without an exchange."""

    def finish(self) -> None:  # noqa: B027  # most have nothing to do
        """Complete the exchange after a step's last backward pass; by default there is nothing left to do."""

    def squared_norms(self, parameters: Sequence[nn.Parameter], values: Sequence[Tensor]) -> Tensor:
        """Return the squared norms of whole tensors; every worker calls this.

        Args:
            parameters: Parameters of the wrapped model.
            values: A tensor of each parameter's form, such as its gradient.

        Returns:
            float64 (number of parameters,), on the parameters' device.
        """
        return squared_norms(parameters, values)

    @property
    def has_equal_weights(self) -> bool:
        """Whether all workers have the same weights after the latest step; evaluations and checkpoints wait for it."""
        return True

    def is_cut(self, name: str) -> bool:
        """Return whether a worker has only a part of the parameter or buffer `name`."""
        return False

    def whole(self, name: str, value: Tensor) -> Tensor:
        """Return a tensor of the form of the parameter or buffer `name` for a checkpoint: whole on the first worker.

        Every worker calls this for the same tensors in the same order if the exchange cuts weights; then it returns a
        copy. Other workers may get anything.
        """
        return value

    def part(self, name: str, value: Tensor) -> Tensor:
        """Return this worker's part of a whole tensor of the form of the parameter or buffer `name`."""
        return value

    def evaluating(self) -> AbstractContextManager[None]:
        """Return a context in which the model, in evaluation mode, works alone; every worker enters it."""
        return nullcontext()

    def state_dict(self) -> dict[str, Any]:
        """Return what this rank keeps from step to step beside the weights; every rank's goes into the checkpoint.

        Plain containers, numbers and tensors on the CPU; checkpoints hold nothing else. Empty: nothing would be lost
        without it.
        """
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what this rank's `state_dict` returned on as many workers; called before `wrap`."""
        raise NotImplementedError(f"{type(self).__name__} keeps no state")


MakeExchange = Callable[[RankShare], Exchange]
"""Function that makes the exchange of a worker, given its part of each global batch."""
