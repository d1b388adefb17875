"""The exchanges of gradients by their names."""

from cluster.exchange.allreduce import AllReduce
from cluster.exchange.base import Exchange
from cluster.exchange.factors import Factors
from cluster.exchange.names import Strategy

EXACT: dict[Strategy, type[Exchange]] = {"allreduce": AllReduce, "factors": Factors}
