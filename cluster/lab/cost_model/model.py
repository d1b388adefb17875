"""The cost model: what a step takes with any number of workers, batch, bandwidth and exchange.

    T       = max(T_input, t0 + b t_img + extra + update + kappa T_comm + exposed + slowest)
    T_comm  = alpha messages + bytes / beta, that of what may hide plus that of what the computation waits for
    exposed = T_awaited + max(0, T_hidden - hidden share x backward pass)
    slowest = tail sqrt(2 ln w) (t0 + b t_img)

b are the samples of each of w workers. Messages, bytes and extra operations are those of `cluster/exchange/cost.py`; a
collective operation of w workers in a ring passes on 2 (w - 1) messages, one after the other. t0, t_img and the update
are a mean worker's, measured without an exchange, alpha and beta those of a sweep of the link. Only the three numbers
of `Overlap` are fitted, to steps of several workers; all are ratios, so they keep their meaning where everything is ten
times as fast. T is the slowest worker's step, with an exchange or without. Its delay grows with the number of
workers as the largest of w normal variables does, about sqrt(2 ln w) standard deviations above their mean.
"""

import math
from dataclasses import dataclass

import numpy as np

from cluster.exchange.cost import BACKWARD_SHARE, Link
from cluster.lab.cost_model.kind import Kind, exchange_ratio, samples_per_worker
from cluster.lab.scaling_table import Cell


@dataclass(frozen=True, kw_only=True)
class Pace:
    """What a worker does without an exchange.

    Attributes:
        fixed_seconds: Time of a step's passes that no number of samples changes, t0.
        seconds_per_sample: Time of a sample's forward and backward passes, t_img.
        update_seconds: Time of the update of the whole model's weights.
        loader_images_per_second: Samples per second that a worker's loader gives, if nothing else holds it up; infinite
            where it never was what held up a step.
    """

    fixed_seconds: float = 0.0
    seconds_per_sample: float
    update_seconds: float = 0.0
    loader_images_per_second: float = math.inf

    def passes_seconds(self, num_samples: float) -> float:
        """Return the time of a step's forward and backward passes."""
        return self.fixed_seconds + num_samples * self.seconds_per_sample


@dataclass(frozen=True, kw_only=True)
class Network:
    """The links of a cluster at any bandwidth.

    Attributes:
        message_seconds: Time of a message that holds almost nothing, alpha.
        shares: (Gbit/s, what collective operations get of them), by bandwidth. Between them it is interpolated, over
            the logarithm; beyond them it stays the same.
    """

    message_seconds: float
    shares: tuple[tuple[float, float], ...] = ((1.0, 1.0),)

    def link(self, gigabits_per_second: float, num_workers: int) -> Link:
        """Return the link of each of some workers.

        Raises:
            ValueError: The bandwidth is not above 0; of links that were not shaped, it is what was measured.
        """
        if not gigabits_per_second > 0:
            raise ValueError(f"gigabits_per_second={gigabits_per_second}: must be more than 0")
        known, shares = zip(*self.shares, strict=True)
        share = float(np.interp(math.log(gigabits_per_second), np.log(known), shares))
        return Link(self.message_seconds * num_messages(num_workers), share * gigabits_per_second * 1e9 / 8)


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """How an exchange and the computation beside it get on: what is fitted. The defaults are a perfect overlap.

    Attributes:
        kappa: Seconds that the computation loses per second of exchange.
        hidden_share: Share of the backward pass behind which an exchange hides.
        tail: How much later the slowest worker's passes end than a mean worker's, over these passes and sqrt(2 ln w).
    """

    kappa: float = 0.0
    hidden_share: float = 1.0
    tail: float = 0.0


@dataclass(frozen=True, kw_only=True)
class StepParts:
    """A predicted step, in seconds.

    Attributes:
        input_seconds: Time in which the loader makes a worker's samples; it goes on beside the rest.
        compute_seconds: Forward and backward passes.
        exchange_seconds: What the exchange adds to them.
        slowest_seconds: What the slowest worker's passes take longer.
        update_seconds: Update of the weights.
        exchange_alone_seconds: The exchange with nothing beside it, T_comm.
    """

    input_seconds: float
    compute_seconds: float
    exchange_seconds: float
    slowest_seconds: float
    update_seconds: float
    exchange_alone_seconds: float

    @property
    def step_seconds(self) -> float:
        """The step."""
        in_turn = self.compute_seconds + self.exchange_seconds + self.slowest_seconds + self.update_seconds
        return max(self.input_seconds, in_turn)


@dataclass(frozen=True, kw_only=True)
class CostModel:
    """The cost model of one kind of cells.

    Attributes:
        kind: What all its cells have in common.
        pace: A worker without an exchange.
        network: The links.
        overlap: How the exchange and the computation get on.
    """

    kind: Kind
    pace: Pace
    network: Network
    overlap: Overlap = Overlap()

    def predict(self, cell: Cell) -> StepParts:
        """Predict a cell of this kind."""
        return self.terms(cell).parts(self.overlap)

    def images_per_second(self, cell: Cell) -> float:
        """Predict the samples per second of all workers."""
        return cell.global_batch_size / self.predict(cell).step_seconds

    def exchange_ratio(self, cell: Cell) -> float:
        """Return a cell's r, see `exchange_ratio`."""
        link = self.network.link(cell.gigabits_per_second, cell.num_workers)
        alone = self.predict(cell.without_exchange)
        return exchange_ratio(cell, link.bytes_per_second, alone.compute_seconds + alone.slowest_seconds)

    def terms(self, cell: Cell) -> "Terms":
        """Return what of a cell's prediction does not depend on what is fitted."""
        num_workers, num_samples = cell.num_workers, samples_per_worker(cell)
        traffic = self.kind.traffic(cell.exchange, num_workers, cell.global_batch_size)
        passes = self.pace.passes_seconds(num_samples)
        hidden = awaited = 0.0
        if traffic.num_hidden:
            link = self.network.link(cell.gigabits_per_second, num_workers)
            hidden = link.seconds(traffic.num_hidden, traffic.hidden_bytes)
            awaited = link.seconds(traffic.num_awaited, traffic.awaited_bytes)
        return Terms(
            input_seconds=num_samples / self.pace.loader_images_per_second,
            passes_seconds=passes,
            extra_seconds=traffic.extra_operations / (num_samples * self.kind.operations_per_sample) * passes,
            update_seconds=self.pace.update_seconds * self._updated_share(cell),
            hidden_seconds=hidden,
            awaited_seconds=awaited,
            slowest=math.sqrt(2 * math.log(num_workers)),
        )

    def _updated_share(self, cell: Cell) -> float:
        """Return which part of the weights a worker updates: by `hybrid`, its own of the dense layers."""
        workload = self.kind.workload(cell.global_batch_size)
        total = workload.num_other + workload.num_dense
        held = workload.num_dense / (cell.num_workers if cell.exchange == "hybrid" else 1)
        return (workload.num_other + held) / total


@dataclass(frozen=True, kw_only=True)
class Terms:
    """A cell's prediction before the overlap is known; all in seconds.

    Attributes:
        input_seconds: Time in which the loader makes a worker's samples.
        passes_seconds: Forward and backward passes without an exchange.
        extra_seconds: What a worker computes for the exchange alone.
        update_seconds: Update of the weights a worker holds.
        hidden_seconds: Exchange that may hide behind the backward pass.
        awaited_seconds: Exchange that the computation waits for.
        slowest: Delay of the slowest worker, in tails.
    """

    input_seconds: float
    passes_seconds: float
    extra_seconds: float
    update_seconds: float
    hidden_seconds: float
    awaited_seconds: float
    slowest: float

    def parts(self, overlap: Overlap) -> StepParts:
        """Return the prediction."""
        alone = self.hidden_seconds + self.awaited_seconds
        behind = overlap.hidden_share * BACKWARD_SHARE * self.passes_seconds
        exposed = self.awaited_seconds + max(0.0, self.hidden_seconds - behind)
        return StepParts(
            input_seconds=self.input_seconds,
            compute_seconds=self.passes_seconds + self.extra_seconds,
            exchange_seconds=overlap.kappa * alone + exposed,
            slowest_seconds=overlap.tail * self.slowest * self.passes_seconds,
            update_seconds=self.update_seconds,
            exchange_alone_seconds=alone,
        )


def num_messages(num_workers: int) -> int:
    """Return the messages that a collective operation in a ring passes on, one after the other."""
    return 2 * (num_workers - 1)
