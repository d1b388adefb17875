"""How a worker operates, in ways that don't change what it computes. Loads neither torch nor DALI."""

from dataclasses import dataclass

from cluster.exchange.names import StrategyChoice
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
