"""Fits the cost model to rows of a scaling experiment, each number to the rows that show it.

The time of the passes, t0 + b t_img, and of the update come from the cells without an exchange. The former is that of a
mean worker, since what the slowest is late is a term of its own. alpha and beta come from the sweeps of the links. Only
`Overlap` is fitted to the steps of several workers, by the least sum of squared relative errors.
"""

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np
from scipy.optimize import least_squares, nnls

from cluster.lab.cost_model.kind import Kind, samples_per_worker
from cluster.lab.cost_model.model import CostModel, Network, Overlap, Pace, num_messages
from cluster.lab.efficiency import by_cell, step_seconds
from cluster.lab.scaling_table import NO_EXCHANGE, Cell, Row
from cluster.run.verdict import BINDING_WAIT
from pipeline.command import InputError

_FITTED = ("kappa", "hidden_share", "tail")
_LARGEST = (3.0, 1.0, 1.0)
_STARTS = (0.1, 0.6)  # of each, as shares of the largest: the errors have kinks, so one start may end in a corner


@dataclass(frozen=True)
class _Times:
    """A cell's times: medians over its blocks, so that a block that was disturbed counts little."""

    cell: Cell
    step_seconds: float
    mean_step_seconds: float
    update_seconds: float
    data_wait_seconds: float

    @classmethod
    def of(cls, rows: Sequence[Row]) -> "_Times":
        return cls(
            rows[0].cell,
            step_seconds(rows),
            median(row.mean_step_seconds for row in rows),
            median(row.update_seconds for row in rows),
            median(row.data_wait_seconds for row in rows),
        )

    @property
    def is_loader_binding(self) -> bool:
        return self.data_wait_seconds > BINDING_WAIT * self.step_seconds

    @property
    def passes_seconds(self) -> float:
        """Time of a mean worker's passes, without an exchange; a short wait for the loader counts as theirs."""
        wait = self.data_wait_seconds if self.is_loader_binding else 0.0
        return self.mean_step_seconds - self.update_seconds - wait


def fit_cost_model(rows: Sequence[Row]) -> CostModel:
    """Fit a model to the rows of one kind.

    Raises:
        InputError: They lack what the model is made of.
    """
    kinds = {Kind.of(row) for row in rows}
    if len(kinds) != 1:
        raise ValueError(f"rows of {len(kinds)} kinds: must be one")
    return CostModel(kind=kinds.pop(), pace=fit_pace(rows), network=fit_network(rows), overlap=fit_overlap(rows))


def fit_pace(rows: Iterable[Row]) -> Pace:
    """Return what a worker does without an exchange.

    Raises:
        InputError: No row is without an exchange.
    """
    alone = [_Times.of(found) for cell, found in by_cell(list(rows)).items() if cell.exchange == NO_EXCHANGE]
    if not alone:
        raise InputError("the table has no cell without an exchange, which the cost model starts from")
    binding = [times for times in alone if times.is_loader_binding]
    samples_C = np.array([samples_per_worker(times.cell) for times in alone], np.float64)
    passes_C = np.array([times.passes_seconds for times in alone])
    ones_C = np.ones_like(samples_C) * shows_fixed_time(times.cell for times in alone)
    fixed, per_sample = relative_fit(np.stack([ones_C, samples_C], 1), passes_C)
    rates = [samples_per_worker(times.cell) / times.step_seconds for times in binding]
    return Pace(
        fixed_seconds=fixed,
        seconds_per_sample=per_sample,
        update_seconds=median(times.update_seconds for times in alone),
        loader_images_per_second=median(rates) if rates else math.inf,
    )


def shows_fixed_time(cells: Iterable[Cell]) -> bool:
    """Return whether cells tell a step's fixed time from that of its samples; else the former is taken as 0."""
    return len({samples_per_worker(cell) for cell in cells if cell.exchange == NO_EXCHANGE}) > 1


def fit_network(rows: Iterable[Row]) -> Network:
    """Return the links, by the sweeps in the rows.

    Raises:
        InputError: No row has one.
    """
    swept = [row for row in rows if is_exchanging(row)]
    if not swept:
        raise InputError("the table has no cell with several workers, an exchange and a measured link")
    by_bandwidth: dict[float, list[float]] = {}
    for row in swept:
        share = row.link_bytes_per_second * 8e-9 / row.gigabits_per_second
        by_bandwidth.setdefault(row.gigabits_per_second, []).append(share)
    return Network(
        message_seconds=median(row.link_latency_seconds / num_messages(row.num_workers) for row in swept),
        shares=tuple((gigabits, median(shares)) for gigabits, shares in sorted(by_bandwidth.items())),
    )


def is_exchanging(row: Row) -> bool:
    """Return whether a row shows an exchange on a link that was measured."""
    has_exchange = row.exchange != NO_EXCHANGE and row.num_workers > 1
    return has_exchange and row.gigabits_per_second > 0 and math.isfinite(row.link_bytes_per_second)


def fit_overlap(rows: Sequence[Row]) -> Overlap:
    """Return how the exchange and the computation get on, by the rows of one kind.

    Without an exchange, several workers show the tail alone.

    Raises:
        InputError: They lack what the model is made of.
    """
    shown = by_cell(
        [row for row in rows if is_exchanging(row) or (row.num_workers > 1 and row.exchange == NO_EXCHANGE)]
    )
    model = CostModel(kind=Kind.of(rows[0]), pace=fit_pace(rows), network=fit_network(rows))
    terms = list(map(model.terms, shown))
    measured_C = np.array(list(map(step_seconds, shown.values())))

    def errors(values_3: np.ndarray) -> np.ndarray:
        overlap = Overlap(**dict(zip(_FITTED, values_3, strict=True)))
        return np.array([term.parts(overlap).step_seconds for term in terms]) / measured_C - 1

    starts = itertools.product(*[[start * largest for start in _STARTS] for largest in _LARGEST])
    fits = [least_squares(errors, start, bounds=((0, 0, 0), _LARGEST)) for start in starts]
    best = min(fits, key=lambda fit: float(fit.cost)).x
    # A search inside bounds never reaches them: without the last digits, 0 is 0.
    return Overlap(**{name: round(float(value), 4) for name, value in zip(_FITTED, best, strict=True)})


def relative_fit(terms_CN: np.ndarray, values_C: np.ndarray) -> list[float]:
    """Return the coefficients, none below 0, of the least sum of squared relative errors."""
    found, _ = nnls(terms_CN / values_C[:, None], np.ones(len(values_C)))
    return [float(value) for value in found]
