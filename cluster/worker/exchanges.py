"""The exchange of a run's gradients: an exact one, which a launch chooses."""

from cluster.exchange.allreduce import AllReduce
from cluster.exchange.base import Exchange, MakeExchange
from cluster.exchange.factors import Factors
from cluster.exchange.names import Strategy
from cluster.run.config import TrainingConfig
from cluster.worker.options import WorkerOptions

EXACT: dict[Strategy, type[Exchange]] = {"allreduce": AllReduce, "factors": Factors}


def exchange_for(config: TrainingConfig, options: WorkerOptions) -> MakeExchange:
    """Return the function that makes the exchange which recipe and options name."""
    return EXACT["allreduce" if options.exchange == "auto" else options.exchange]
