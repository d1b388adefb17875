"""Bandwidths at which another exchange becomes the fastest, by the cost model."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cluster.lab.cost_model.model import CostModel
from cluster.lab.scaling_table import Cell

_NUM_PLACES = 1000  # bandwidths that are tried


@dataclass(frozen=True)
class Crossing:
    """A bandwidth at which the fastest of some exchanges changes.

    Attributes:
        gigabits_per_second: Bandwidth.
        below: Fastest exchange on slower links.
        above: Fastest exchange on faster links.
    """

    gigabits_per_second: float
    below: str
    above: str


def find_crossings(model: CostModel, cell: Cell, exchanges: Sequence[str], low: float, high: float) -> list[Crossing]:
    """Return where the fastest of some exchanges changes, from the slowest link on.

    Args:
        model: Cost model of the cell's kind.
        cell: Number of workers and batch, by any exchange on any link.
        exchanges: Exchanges to compare; of equally fast ones, the first counts.
        low: Bandwidth in Gbit/s from which on it is looked for.
        high: Bandwidth up to which it is.
    """
    if not exchanges:
        return []
    gigabits_P = np.geomspace(low, high, _NUM_PLACES)
    fastest = [_fastest(model, cell, exchanges, float(gigabits)) for gigabits in gigabits_P]
    between_P = np.sqrt(gigabits_P[:-1] * gigabits_P[1:])
    changes = zip(between_P, fastest, fastest[1:], strict=False)
    return [Crossing(float(gigabits), below, above) for gigabits, below, above in changes if below != above]


def _fastest(model: CostModel, cell: Cell, exchanges: Sequence[str], gigabits: float) -> str:
    cells = [dataclasses.replace(cell, exchange=name, gigabits_per_second=gigabits) for name in exchanges]
    return min(cells, key=lambda one: model.predict(one).step_seconds).exchange
