"""What `jobs/plan.py` says: lines for a person, and the same as a document."""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from cluster.lab.cost_model.planning import (
    Bottleneck,
    Point,
    find_bottleneck,
    predict_exchanges,
    scan,
    usable_exchanges,
)
from jobs.scaling.plan_inputs import PlanInputs
from pipeline.command import InputError

if TYPE_CHECKING:
    from jobs.plan import Arguments

_RESOURCES = {
    "loader": "the loader",
    "computation": "the computation",
    "exchange": "the exchange",
    "slowest worker": "the wait for the slowest worker",
    "update": "the update of the weights",
}


@dataclass(frozen=True)
class _Chosen:
    """The points that a plan names.

    Attributes:
        points: All numbers of workers.
        asked: The number that was asked for.
        fastest: The one that ends first.
        cheapest: The one with the fewest worker hours among those in time; None if none is.
    """

    points: Sequence[Point]
    asked: Point
    fastest: Point
    cheapest: Point | None


def format_plan(arguments: "Arguments", inputs: PlanInputs) -> str:
    """Return the plan in lines."""
    return "".join(f"{line}\n" for line in _lines(arguments, inputs, _choose(arguments, inputs)))


def plan_document(arguments: "Arguments", inputs: PlanInputs) -> dict[str, Any]:
    """Return the plan as a document."""
    chosen = _choose(arguments, inputs)
    bottleneck = find_bottleneck(inputs.model, chosen.asked.cell)
    return {
        "inputs": [asdict(each) for each in inputs.inputs],
        "interval": inputs.error_note,
        "plan": _point_document(inputs, chosen.asked),
        "binds": {name: _finite(value) for name, value in asdict(bottleneck).items()},
        "exchanges": {cell.exchange: parts.step_seconds for cell, parts in _exchanges(inputs, chosen.asked).items()},
        "loader_images_per_second_per_worker": chosen.asked.images_per_second / chosen.asked.cell.num_workers,
        "disk_bytes": None if inputs.image_bytes is None else inputs.image_bytes * inputs.job.num_images,
        "fastest": _point_document(inputs, chosen.fastest),
        "cheapest": None if chosen.cheapest is None else _point_document(inputs, chosen.cheapest),
        "scan": [_point_document(inputs, point) for point in chosen.points],
    }


def _finite(value: Any) -> Any:
    """Return a value for JSON, which knows no infinity."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _choose(arguments: "Arguments", inputs: PlanInputs) -> _Chosen:
    if not usable_exchanges(inputs.model, inputs.job, arguments.workers):
        raise InputError(
            f"{' and '.join(arguments.exchanges)} can't be used by {arguments.workers} workers with "
            f"{inputs.model.kind.model}, whose layers can't be cut so often; name more --exchanges, or fewer --workers"
        )
    points = scan(inputs.model, inputs.job, arguments.workers)
    ending = [point for point in points if math.isfinite(point.hours)]
    if not ending:
        raise InputError(
            "the run never ends on any number of workers: interruptions come faster than the "
            f"{inputs.job.interruption_seconds:.3g} s that each costs; check --interruptions-per-hour"
        )
    limit = arguments.within_hours or math.inf
    in_time = [point for point in ending if point.hours <= limit]
    return _Chosen(
        points=points,
        asked=points[-1],
        fastest=min(ending, key=lambda point: point.hours),
        cheapest=min(in_time, key=lambda point: point.worker_hours, default=None),
    )


def _lines(arguments: "Arguments", inputs: PlanInputs, chosen: _Chosen) -> Iterator[str]:
    asked, currency = chosen.asked, arguments.currency
    num_workers = asked.cell.num_workers
    yield "inputs"
    for each in inputs.inputs:
        yield f"  {each.name:<22} {each.value:<62} {each.source}{f': {each.note}' * bool(each.note)}"
    yield ""
    low, high = inputs.interval(asked)
    yield f"{_workers(num_workers)}, global batch {asked.cell.global_batch_size:,}"
    yield f"  images/s               {asked.images_per_second:,.0f} ({low:,.0f} to {high:,.0f}: {inputs.error_note})"
    yield f"  exchange               {_exchange_words(inputs, asked)}"
    yield f"  a step                 {_step_words(asked)}"
    if num_workers > 1:
        yield f"  r                      {_ratio_words(inputs, asked)}"
    yield f"  what binds             {_bottleneck_words(find_bottleneck(inputs.model, asked.cell))}"
    epochs = f"{inputs.job.num_epochs:g} epochs"
    yield f"  {epochs:<22} {_cost_words(asked, currency)}{_interrupted_words(inputs, asked)}"
    yield f"  loader needed          {asked.images_per_second / num_workers:,.0f} images/s per worker"
    yield f"  disk needed            {_disk_words(inputs)}"
    yield ""
    yield f"fastest   {_point_words(chosen.fastest, currency)}"
    if chosen.cheapest is not None:
        yield f"cheapest  {_point_words(chosen.cheapest, currency)}" + _limit_words(arguments)
    else:
        yield f"cheapest  none ends within {arguments.within_hours:g} h"
    yield ""
    yield from _table(inputs, chosen, currency)


def _table(inputs: PlanInputs, chosen: _Chosen, currency: str) -> Iterator[str]:
    """Yield a row for each power of two, the fastest, the cheapest and the one that was asked for."""
    named = {point.cell.num_workers for point in (chosen.asked, chosen.fastest, chosen.cheapest) if point is not None}
    cost_name = "worker hours" if inputs.job.price_per_hour is None else currency
    yield f"workers  global batch   images/s  efficiency  exchange   hours      {cost_name}"
    alone = chosen.points[0].images_per_second
    for point in chosen.points:
        number = point.cell.num_workers
        if number & (number - 1) and number not in named:
            continue
        efficiency = point.images_per_second / alone / number
        cost = point.price if point.price is not None else point.worker_hours
        yield (
            f"{number:7}  {point.cell.global_batch_size:12,}  {point.images_per_second:9,.0f}  {efficiency:9.0%}   "
            f"{point.cell.exchange:<9}  {point.hours:<9,.4g}  {cost:,.4g}"
        )


def _point_document(inputs: PlanInputs, point: Point) -> dict[str, Any]:
    low, high = inputs.interval(point)
    return {
        "num_workers": point.cell.num_workers,
        "global_batch_size": point.cell.global_batch_size,
        "exchange": point.cell.exchange,
        "images_per_second": point.images_per_second,
        "images_per_second_interval": [low, high],
        "step": asdict(point.parts) | {"step_seconds": point.parts.step_seconds},
        "hours": _finite(point.hours),
        "price": _finite(point.price),
    }


def _exchanges(inputs: PlanInputs, point: Point) -> Mapping[Any, Any]:
    return predict_exchanges(inputs.model, inputs.job, point.cell.num_workers)


def _exchange_words(inputs: PlanInputs, point: Point) -> str:
    options = _exchanges(inputs, point)
    seconds = sorted((parts.step_seconds, cell.exchange) for cell, parts in options.items())
    if len(seconds) == 1:
        return point.cell.exchange
    return f"{point.cell.exchange}: steps of " + ", ".join(f"{name} {one:.3g} s" for one, name in seconds)


def _step_words(point: Point) -> str:
    parts = point.parts
    words = [f"{parts.step_seconds:.3g} s: computation {parts.compute_seconds:.3g}"]
    words += [f"exchange {parts.exchange_seconds:.3g}"]
    words += [f"wait for the slowest worker {parts.slowest_seconds:.3g}"] * (parts.slowest_seconds > 0)
    words += [f"update {parts.update_seconds:.3g}"]
    words += [f"beside a loader that takes {parts.input_seconds:.3g}"] * (parts.input_seconds > 0)
    return ", ".join(words)


def _ratio_words(inputs: PlanInputs, point: Point) -> str:
    cell = dataclasses.replace(point.cell, exchange="allreduce", gigabits_per_second=inputs.job.gigabits_per_second)
    return f"{inputs.model.exchange_ratio(cell):.3g}: the time of all-reduce's bytes over that of the computation"


def _bottleneck_words(found: Bottleneck) -> str:
    reached = f"{found.next_images_per_second:,.0f} images/s"
    if math.isinf(found.next_images_per_second):
        return f"{_RESOURCES[found.resource]}, and nothing else"
    return f"{_RESOURCES[found.resource]}; if it took no time, {_RESOURCES[found.next_resource]}, at {reached}"


def _interrupted_words(inputs: PlanInputs, point: Point) -> str:
    job = inputs.job
    if not job.interruptions_per_hour:
        return ""
    lost = 1 - max(0.0, job.share_at_work(point.cell.num_workers))
    rate = job.interruptions_per_hour * point.cell.num_workers
    return f"; {rate:.3g} interruptions per hour of {job.interruption_seconds:.3g} s each take {lost:.1%} of it"


def _disk_words(inputs: PlanInputs) -> str:
    if inputs.image_bytes is None:
        return "unknown; give --data, or --bytes-per-image"
    return f"{inputs.image_bytes * inputs.job.num_images / 1e9:,.4g} GB for {inputs.job.num_images:,} pictures"


def _limit_words(arguments: "Arguments") -> str:
    return f", of those within {arguments.within_hours:g} h" if arguments.within_hours is not None else ""


def _point_words(point: Point, currency: str) -> str:
    number = point.cell.num_workers
    return (
        f"{number} worker{'s' * (number > 1)}, {point.images_per_second:,.0f} images/s: {_cost_words(point, currency)}"
    )


def _cost_words(point: Point, currency: str) -> str:
    if math.isinf(point.hours):
        return "it never ends"
    price = f"{point.worker_hours:,.4g} worker hours" if point.price is None else f"{point.price:,.2f} {currency}"
    return f"{point.hours:,.4g} h, {price}"


def _workers(number: int) -> str:
    return f"{number:,} worker{'s' * (number > 1)}"
