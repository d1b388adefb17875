"""How a worker operates, in ways that don't change what it computes. Loads neither torch nor DALI."""

from dataclasses import dataclass

from cluster.exchange.names import StrategyChoice
from cluster.run.config import TrainingConfig
from pipeline.command import InputError
from pipeline.online.batch import Cache


@dataclass(frozen=True, kw_only=True)
class WorkerOptions:
    """Options of a launch.

    Attributes:
        micro_batch_size: Maximum number of samples per forward pass; None: the worker's whole slice.
        cache: Where decoded training pictures are kept; see `pipeline.online.batch.LoaderConfig`.
        exchange: Strategy by which the workers combine their gradients; `auto`: the one with the shortest predicted
            step (`cluster/exchange/cost.py`).
    """

    micro_batch_size: int | None = None
    cache: Cache = "auto"
    exchange: StrategyChoice = "auto"

    def check(self, config: TrainingConfig) -> None:
        """Check that the options fit a recipe.

        Raises:
            InputError: They do not; the message names the option and what would be right.
        """
        size, least = self.micro_batch_size, config.model.group_size
        if size is not None and size < least:
            raise InputError(f"--micro-batch-size is {size}; it must be at least {least}")
        if config.is_exchange_lossy and self.exchange not in ("auto", "allreduce"):
            lossy = (
                f"--local-sgd-steps {config.local_sgd_steps}"
                if config.local_sgd_steps is not None
                else f"--gradient-compression {config.gradient_compression}"
            )
            raise InputError(f"--exchange {self.exchange} does not go with {lossy}; leave one of them out")
