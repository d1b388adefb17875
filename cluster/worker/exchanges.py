"""The exchanges of gradients by their names."""

from cluster.exchange.allreduce import AllReduce
from cluster.exchange.base import Exchange
from cluster.exchange.factors import Factors
from cluster.exchange.hybrid import Hybrid
from cluster.exchange.names import Strategy
from cluster.run.config import TrainingConfig
from pipeline.online.order import RankShare

EXACT: dict[Strategy, type[Exchange]] = {"allreduce": AllReduce, "factors": Factors, "hybrid": Hybrid}


def lossy_exchange(config: TrainingConfig, share: RankShare, total_steps: int) -> Exchange:
    """Return the exchange of a recipe whose exchange is lossy, for a run of that many steps."""
    # Imported here: the exact exchanges don't need them, and some take a second to load.
    from cluster.exchange.bf16 import Bf16
    from cluster.exchange.local_sgd import LocalSgd
    from cluster.exchange.powersgd import PowerSgd

    num_exact_steps = config.num_exact_steps(total_steps)
    if config.local_sgd_steps is not None:
        return LocalSgd(share, config.local_sgd_steps, num_exact_steps, total_steps)
    if config.gradient_compression == "powersgd":
        return PowerSgd(share, config.powersgd_rank, num_exact_steps)
    return Bf16(share)
