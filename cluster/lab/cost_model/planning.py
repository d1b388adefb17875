"""Plans a training run on any number of workers by the cost model: how fast, how long, at what price, what binds.

Interruptions: each costs the time until training goes on, and on average half the time between two checkpoints, which
is computed again. With w workers of which each is interrupted L times per hour, and S seconds for each time, a run of H
hours takes H / (1 - w L S / 3600). This takes for granted that another worker is there at once.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from cluster.lab.cost_model.model import CostModel, Network, Overlap, StepParts
from cluster.lab.scaling_table import NO_EXCHANGE, Cell

Resource = Literal["loader", "computation", "exchange", "slowest worker", "update"]
_MOST_POINTS = 256
_NOTHING_HIDES = Overlap(hidden_share=0.0)
_INFINITE = Network(message_seconds=0.0, shares=((1.0, math.inf),))


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is to be trained. One of the two batch sizes is given.

    Attributes:
        num_images: Number of training pictures.
        num_epochs: Number of epochs.
        global_batch_size: Samples per step over all workers.
        batch_size_per_worker: Samples per step of each worker.
        gigabits_per_second: Bandwidth of each worker's link.
        exchanges: Exchanges to choose from; none: all that are exact.
        price_per_hour: Price of a worker, or None.
        interruptions_per_hour: How often a worker is interrupted.
        interruption_seconds: What each interruption costs.
    """

    num_images: int
    num_epochs: float
    global_batch_size: int | None = None
    batch_size_per_worker: int | None = None
    gigabits_per_second: float
    exchanges: tuple[str, ...] = ()
    price_per_hour: float | None = None
    interruptions_per_hour: float = 0.0
    interruption_seconds: float = 0.0

    def batch(self, num_workers: int) -> int:
        """Return the global batch size."""
        return self.global_batch_size or (self.batch_size_per_worker or 1) * num_workers

    def share_at_work(self, num_workers: int) -> float:
        """Return the share of the time that interruptions leave, at most 1; 0 or less: the run never ends."""
        return 1 - num_workers * self.interruptions_per_hour * self.interruption_seconds / 3600


@dataclass(frozen=True, kw_only=True)
class Point:
    """A number of workers, and what the model predicts of it.

    Attributes:
        cell: Workers, batch, exchange and link.
        parts: A step.
        images_per_second: Samples per second of all workers, without interruptions.
        hours: Time of all epochs, with interruptions; infinite if they leave none.
        price: Price of that, or None.
    """

    cell: Cell
    parts: StepParts
    images_per_second: float
    hours: float
    price: float | None

    @property
    def worker_hours(self) -> float:
        """Hours of all workers."""
        return self.hours * self.cell.num_workers


@dataclass(frozen=True, kw_only=True)
class Bottleneck:
    """What holds up a step, and what would if that took no time.

    Attributes:
        resource: What takes longest.
        next_resource: What then takes longest.
        next_images_per_second: Throughput then.
    """

    resource: Resource
    next_resource: Resource
    next_images_per_second: float


def predict_point(model: CostModel, job: Job, num_workers: int) -> Point:
    """Predict a run on some workers, by the exchange with the shortest step."""
    options = predict_exchanges(model, job, num_workers)
    cell, parts = min(options.items(), key=lambda option: option[1].step_seconds)
    images_per_second = cell.global_batch_size / parts.step_seconds
    at_work = job.share_at_work(num_workers)
    hours = math.inf
    if at_work > 0:
        hours = job.num_images * job.num_epochs / images_per_second / 3600 / at_work
    price = None if job.price_per_hour is None else job.price_per_hour * num_workers * hours
    return Point(cell=cell, parts=parts, images_per_second=images_per_second, hours=hours, price=price)


def usable_exchanges(model: CostModel, job: Job, num_workers: int) -> tuple[str, ...]:
    """Return the exchanges to choose from that some workers can use."""
    if num_workers == 1:
        return (NO_EXCHANGE,)
    possible = model.kind.workload(job.batch(num_workers)).choices(num_workers)
    return tuple(name for name in job.exchanges if name == "bf16" or name in possible) if job.exchanges else possible


def predict_exchanges(model: CostModel, job: Job, num_workers: int) -> dict[Cell, StepParts]:
    """Predict a step by each of the usable exchanges."""
    kind = dataclasses.asdict(model.kind)
    cells = [
        Cell(
            **kind,
            num_workers=num_workers,
            global_batch_size=job.batch(num_workers),
            exchange=name,
            gigabits_per_second=job.gigabits_per_second,
        )
        for name in usable_exchanges(model, job, num_workers)
    ]
    return {cell: model.predict(cell) for cell in cells}


def scan(model: CostModel, job: Job, most_workers: int) -> list[Point]:
    """Predict runs on all numbers of workers that have a usable exchange, or on some hundred of many, evenly spaced."""
    if most_workers <= _MOST_POINTS:
        numbers = range(1, most_workers + 1)
    else:
        spaced = np.unique(np.geomspace(1, most_workers, _MOST_POINTS).round().astype(int))
        numbers = [int(number) for number in spaced]  # type: ignore[assignment]
    most = job.global_batch_size or most_workers  # a worker without a sample helps nobody
    return [
        predict_point(model, job, number)
        for number in numbers
        if number <= most and usable_exchanges(model, job, number)
    ]


def find_bottleneck(model: CostModel, cell: Cell) -> Bottleneck:
    """Return what holds up a cell's step."""
    first = _longest(model.predict(cell))
    parts = _without(model, first).predict(cell)
    return Bottleneck(
        resource=first,
        next_resource=_longest(parts, besides=first),
        next_images_per_second=cell.global_batch_size / parts.step_seconds if parts.step_seconds else math.inf,
    )


def nothing_hides(model: CostModel) -> CostModel:
    """Return the model of a cluster where exchange and computation take turns."""
    return dataclasses.replace(model, overlap=_NOTHING_HIDES)


def _seconds(parts: StepParts) -> Mapping[Resource, float]:
    return {
        "loader": parts.input_seconds,
        "computation": parts.compute_seconds,
        "exchange": parts.exchange_seconds,
        "slowest worker": parts.slowest_seconds,
        "update": parts.update_seconds,
    }


def _longest(parts: StepParts, besides: Resource | None = None) -> Resource:
    """Return what holds up a step: the loader if the rest waits for it, else the longest of the rest."""
    if 0 < parts.input_seconds == parts.step_seconds:
        return "loader"
    seconds = {name: took for name, took in _seconds(parts).items() if name not in ("loader", besides)}
    return max(seconds, key=lambda resource: seconds[resource])


def _without(model: CostModel, resource: Resource) -> CostModel:
    """Return the model if a resource took no time."""
    match resource:
        case "loader":
            pace = dataclasses.replace(model.pace, loader_images_per_second=math.inf)
            return dataclasses.replace(model, pace=pace)
        case "computation":
            pace = dataclasses.replace(model.pace, fixed_seconds=0.0, seconds_per_sample=0.0)
            return dataclasses.replace(model, pace=pace)
        case "exchange":
            return dataclasses.replace(model, network=_INFINITE)
        case "slowest worker":
            return dataclasses.replace(model, overlap=dataclasses.replace(model.overlap, tail=0.0))
        case "update":
            return dataclasses.replace(model, pace=dataclasses.replace(model.pace, update_seconds=0.0))
