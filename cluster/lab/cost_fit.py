"""Fits the cost model to rows of a scaling experiment, each number to the rows that show it.

The time of the passes, t0 + b t_img, and of the update come from the cells without an exchange; alpha and beta from
the sweeps of the links. Only `Overlap` is fitted to the steps with an exchange, by the least sum of squared relative
errors.
"""

import itertools
import math
from collections.abc import Iterable, Sequence
from statistics import median

import numpy as np
from scipy.optimize import least_squares, nnls

from cluster.lab.cost_model import CostModel, Network, Overlap, Pace, num_messages
from cluster.lab.kind import Kind, samples_per_worker
from cluster.lab.scaling_table import NO_EXCHANGE, Row
from pipeline.command import InputError

_BINDING_WAIT = 0.1  # share of a step: a loader that is waited for longer holds up the step
_LARGEST = (3.0, 1.0, 1.0)  # of kappa, the hidden share and the tail
_STARTS = (0.1, 0.6)  # of each, as shares of the largest: the errors have kinks, so one start may end in a corner


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
    alone = [row for row in rows if row.exchange == NO_EXCHANGE]
    if not alone:
        raise InputError("the table has no cell without an exchange, which the cost model starts from")
    binding = [row for row in alone if row.data_wait_seconds > _BINDING_WAIT * row.step_seconds]
    samples_R = np.array([samples_per_worker(row) for row in alone], np.float64)
    seconds_R = np.array(
        [
            row.step_seconds - row.update_seconds - (row.data_wait_seconds if row in binding else 0.0)
            for row in alone
        ]
    )  # fmt: skip
    fixed, per_sample = _relative_fit(np.stack([np.ones_like(samples_R), samples_R], 1), seconds_R)
    return Pace(
        fixed_seconds=fixed,
        seconds_per_sample=per_sample,
        update_seconds=median(row.update_seconds for row in alone),
        loader_images_per_second=median(samples_per_worker(row) / row.step_seconds for row in binding)
        if binding
        else math.inf,
    )


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

    Raises:
        InputError: They lack what the model is made of.
    """
    exchanging = [row for row in rows if is_exchanging(row)]
    model = CostModel(kind=Kind.of(rows[0]), pace=fit_pace(rows), network=fit_network(rows))
    terms = [model.terms(row.cell) for row in exchanging]
    measured_R = np.array([row.step_seconds for row in exchanging])

    def errors(values_3: np.ndarray) -> np.ndarray:
        overlap = _overlap(values_3)
        return np.array([term.parts(overlap).step_seconds for term in terms]) / measured_R - 1

    starts = itertools.product(*[[start * largest for start in _STARTS] for largest in _LARGEST])
    fits = [least_squares(errors, start, bounds=((0, 0, 0), _LARGEST)) for start in starts]
    return _overlap(min(fits, key=lambda fit: float(fit.cost)).x)


def _overlap(values_3: np.ndarray) -> Overlap:
    kappa, hidden_share, tail = map(float, values_3)
    return Overlap(kappa=kappa, hidden_share=hidden_share, tail=tail)


def _relative_fit(terms_RN: np.ndarray, values_R: np.ndarray) -> list[float]:
    """Return the coefficients, none below 0, of the least sum of squared relative errors."""
    found, _ = nnls(terms_RN / values_R[:, None], np.ones(len(values_R)))
    return [float(value) for value in found]
