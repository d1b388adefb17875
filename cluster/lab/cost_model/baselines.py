"""What the cost model must beat: three models of a step's time that know neither bytes nor links.

    linear   images/s proportional to the number of workers
    amdahl   T = a + c b, b the samples of a worker: a part that workers share, and one that they don't
    ernest   T = a + c b + d log w + e w (Venkataraman et al. 2016), w workers

Each is fitted anew for each exchange and link, since it does not know these axes, to the cells of that exchange and
link and to those of one worker: like the cost model to medians over their blocks, by the least sum of squared relative
errors with no coefficient below 0. For a bandwidth that is not among the rows, it gets the cells of the nearest one,
and of both neighbours if they are equally near.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np

from cluster.lab.cost_model.fit import relative_fit
from cluster.lab.cost_model.kind import samples_per_worker
from cluster.lab.efficiency import by_cell, step_seconds
from cluster.lab.scaling_table import NO_EXCHANGE, Cell, Row

Terms = Callable[[Cell], Sequence[float]]
BASELINES: dict[str, Terms] = {
    "linear": lambda cell: [cell.global_batch_size / cell.num_workers],
    "amdahl": lambda cell: [1.0, samples_per_worker(cell)],
    "ernest": lambda cell: [1.0, samples_per_worker(cell), math.log(cell.num_workers), cell.num_workers],
}


def predict_by_baseline(name: str, rows: Sequence[Row], cell: Cell) -> float:
    """Return the predicted time of a step of a cell; NaN if no row fits it.

    Args:
        name: Name of the baseline.
        rows: Rows of the cell's kind.
        cell: Cell to predict.
    """
    known = by_cell(_rows_like(rows, cell))
    if not known:
        return math.nan
    terms = BASELINES[name]
    terms_CN = np.array(list(map(terms, known)), np.float64)
    coefficients = relative_fit(terms_CN, np.array(list(map(step_seconds, known.values()))))
    return float(np.dot(coefficients, terms(cell)))


def _rows_like(rows: Sequence[Row], cell: Cell) -> list[Row]:
    """Return the rows of the cell's exchange on the nearest links, and those of one worker."""
    several = [row for row in rows if row.num_workers > 1 and row.exchange == cell.exchange]
    alone = [row for row in rows if row.num_workers == 1 and row.exchange == NO_EXCHANGE]
    distances = [_distance(row.gigabits_per_second, cell.gigabits_per_second) for row in several]
    nearest = min(distances, default=0.0)
    return alone + [row for row, far in zip(several, distances, strict=True) if far <= nearest + 1e-9]


def _distance(gigabits: float, other: float) -> float:
    if not (gigabits and other):
        return 0.0 if gigabits == other else math.inf
    return abs(math.log(gigabits / other))
