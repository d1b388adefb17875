"""How well more workers pay: ratios within blocks of a scaling experiment, with confidence intervals.

Strong scaling keeps the samples of a step, weak scaling those of each worker. Either way the efficiency of w workers is
their throughput over w times that of one worker in the same block, at the same global batch or at the same batch per
worker. Where that one was not measured, or workers have unequal batches, there is no figure: nothing is extrapolated.

An interval is a bootstrap's over blocks: ratios of blocks are drawn with replacement, and their geometric means give
its bounds, at percentiles that are widened for few blocks (Hesterberg 2015, "What teachers should know about the
bootstrap", section 4.3). No resample leaves the range of the blocks. So with 3 blocks, the interval is that range: it
holds the true mean in 3 of 4 cases if blocks scatter evenly around it, whatever the level that was asked for.
"""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal, get_args

import numpy as np
from scipy.stats import norm, t

from cluster.lab.cost_model.kind import Kind, samples_per_worker
from cluster.lab.scaling_table import Cell, Row

Scaling = Literal["strong", "weak"]
LEVEL = 0.95
_NUM_RESAMPLES, _SEED = 10_000, 0


@dataclass(frozen=True)
class Interval:
    """A geometric mean over blocks, and its confidence interval.

    Attributes:
        value: The mean.
        low: Lower bound; NaN with a single block, as is the next.
        high: Upper bound.
        num_blocks: Number of blocks.
    """

    value: float
    low: float
    high: float
    num_blocks: int

    @property
    def is_known(self) -> bool:
        """Whether there are bounds."""
        return self.num_blocks > 1

    def __str__(self) -> str:
        """Show three digits."""
        value, low, high = (f"{one:,.0f}" if one >= 1000 else f"{one:.3g}" for one in (self.value, self.low, self.high))
        return f"{value} ({low} to {high})" if self.is_known else value


@dataclass(frozen=True, kw_only=True)
class Efficiency:
    """How a cell's throughput compares with one worker's, in one way of scaling.

    Attributes:
        scaling: `strong` or `weak`.
        cell: The cell.
        efficiency: Its throughput over that of one worker, and over the number of workers.
    """

    scaling: Scaling
    cell: Cell
    efficiency: Interval


def mean_interval(values: Sequence[float], level: float = LEVEL) -> Interval:
    """Return the geometric mean of positive values, one of each block, and its interval."""
    logs_N, num = np.log(values), len(values)
    mean = math.exp(logs_N.mean())
    if num == 1:
        return Interval(mean, math.nan, math.nan, 1)
    draws_RN = np.random.Generator(np.random.Philox(_SEED)).integers(num, size=(_NUM_RESAMPLES, num))
    # Widened: the normal quantile becomes Student's, and the resamples' spread that of an unbiased variance.
    outside = norm.cdf(-math.sqrt(num / (num - 1)) * t.ppf((1 + level) / 2, num - 1))
    low, high = np.exp(np.quantile(logs_N[draws_RN].mean(axis=1), [outside, 1 - outside]))
    return Interval(mean, min(float(low), mean), max(float(high), mean), num)


def paired_ratio(rows: Sequence[Row], others: Sequence[Row], factor: float = 1.0) -> Interval | None:
    """Return the throughput of rows over that of others of the same blocks, times a factor.

    Args:
        rows: Rows of one cell.
        others: Rows of another one.
        factor: Factor of all ratios.

    Returns:
        The mean ratio; None if no block has both.
    """
    by_block = {(other.block, other.machine): other.images_per_second for other in others}
    ratios = [
        factor * row.images_per_second / by_block[row.block, row.machine]
        for row in rows
        if (row.block, row.machine) in by_block
    ]
    return mean_interval(ratios) if ratios else None


def by_cell(rows: Sequence[Row]) -> dict[Cell, list[Row]]:
    """Return the rows of each cell, in the cells' order."""
    found: dict[Cell, list[Row]] = {}
    for row in rows:
        found.setdefault(row.cell, []).append(row)
    return dict(sorted(found.items()))


def throughput(rows: Sequence[Row]) -> Interval:
    """Return the throughput of a cell."""
    return mean_interval([row.images_per_second for row in rows])


def step_seconds(rows: Sequence[Row]) -> float:
    """Return a cell's step: the median over its blocks."""
    return median(row.step_seconds for row in rows)


def batch_kept(scaling: Scaling, cell: Cell) -> int | None:
    """Return the batch that a way of scaling keeps: all samples of a step, or a worker's; None if those are unequal."""
    if scaling == "strong":
        return cell.global_batch_size
    return None if cell.global_batch_size % cell.num_workers else samples_per_worker(cell)


def efficiencies(rows: Sequence[Row]) -> list[Efficiency]:
    """Return the efficiency of each cell with several workers, in each way of scaling that was measured."""
    cells = by_cell(rows)
    found = []
    for cell, measured in cells.items():
        if cell.num_workers == 1:
            continue
        for scaling in get_args(Scaling):
            batch = batch_kept(scaling, cell)
            if batch is None:
                continue
            alone = dataclasses.replace(cell.without_exchange, num_workers=1, global_batch_size=batch)
            ratio = paired_ratio(measured, cells.get(alone, []), 1 / cell.num_workers)
            if ratio is not None:
                found.append(Efficiency(scaling=scaling, cell=cell, efficiency=ratio))
    return found


def format_efficiencies(rows: Sequence[Row]) -> str:
    """Return a Markdown table of all cells with several workers, with strong and weak scaling side by side."""
    cells = by_cell(rows)
    found = {(each.cell, each.scaling): str(each.efficiency) for each in efficiencies(rows)}
    lines = [
        "| | workers | global batch | exchange | Gbit/s | images/s | strong efficiency | weak efficiency | blocks |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for cell in sorted((cell for cell in cells if cell.num_workers > 1), key=_place):
        link = f"{cell.gigabits_per_second:g}" if cell.gigabits_per_second else "-"
        speed = throughput(cells[cell])
        ratios = [found.get((cell, scaling), "-") for scaling in get_args(Scaling)]
        lines.append(
            f"| {Kind.of(cell)} | {cell.num_workers} | {cell.global_batch_size} | {cell.exchange} | {link} | {speed} | "
            f"{' | '.join(ratios)} | {speed.num_blocks} |"
        )
    return "".join(f"{line}\n" for line in lines)


def _place(cell: Cell) -> tuple[object, ...]:
    return Kind.of(cell), cell.num_workers, cell.global_batch_size, cell.gigabits_per_second, cell.exchange
