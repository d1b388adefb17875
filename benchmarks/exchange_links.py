"""Measure the time of a training step with each exchange of gradients, on links of different bandwidths.

Each worker of `alexnet_2012` runs on a host of its own, a network namespace, with a shaped link. A link is used if
all-reduces of 64 kB to 64 MB fit latency + bytes / bandwidth within 5 %. With the link and the computation as measured,
the cost model of `cluster/lab/cost_model/model.py`, with a perfect overlap, predicts each step, and says at which
bandwidths the exact exchanges change places. The steps are those of a run in float32, on noise; of the workers, the
slowest counts. By root only.
"""

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from statistics import median

import tyro

from benchmarks.exchange_process import Case, run_case
from benchmarks.record import Values, publish, record_document, run_rounds
from cluster.exchange.cost import Link
from cluster.lab.cost_model.crossings import Crossing, find_crossings
from cluster.lab.cost_model.kind import Kind, samples_per_worker
from cluster.lab.cost_model.model import CostModel, Network, Pace, num_messages
from cluster.lab.hosts import Hosts, hosts
from cluster.lab.link_sweep import accepted_link
from cluster.lab.scaling_table import Cell
from cluster.lab.shaped_link import ShapedLink
from cluster.scaling.experiment import ExchangeName
from pipeline.command import run_command

_STEP, _ALONE, _UPDATE = "step_seconds", "alone_seconds", "update_seconds"
_BLOCKED, _PREDICTED = "blocked_seconds", "predicted_seconds"
_QUANTITIES = {
    _STEP: "a step with the exchange, median",
    _ALONE: "a step without an exchange, in turn with the former, median",
    _UPDATE: "of the latter, the update of the weights, median",
    _BLOCKED: "of a step with the exchange, in which it waits for it, median",
    _PREDICTED: "a step by the cost model, with the link and the step without an exchange as measured",
}
_BANDWIDTHS = (0.01, 100.0)  # Gbit/s between which changes of place are looked for


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Command line of `python -m benchmarks.exchange_links`."""

    exchanges: tuple[ExchangeName, ...] = ("allreduce", "bf16", "factors", "hybrid")
    """Exchanges to measure."""
    workers: tuple[int, ...] = (2, 4)
    """Numbers of workers."""
    links: tuple[float, ...] = (0.1, 1.0)
    """Bandwidths of the links in Gbit/s."""
    batch_size: int = 32
    """Global batch size."""
    model: str = "alexnet_2012"
    """Model to train."""
    image_size: int = 224
    """Height and width of the pictures."""
    steps: int = 8
    """Timed steps, after another."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; see the module."""
    arguments = tyro.cli(Arguments, args=argv, description=__doc__)
    values: Values = {}
    links, crossings = {}, list[tuple[int, Crossing]]()
    for num_workers in arguments.workers:
        with hosts(num_workers) as lab:
            for gigabits in arguments.links:
                lab.shape(ShapedLink(gigabits_per_second=gigabits))
                links[f"{num_workers} workers, {gigabits:g} Gbit/s"] = fit = accepted_link(lab)
                cells = {
                    _label(exchange, num_workers, gigabits): partial(measure, arguments, exchange, lab, fit.link)
                    for exchange in arguments.exchanges
                }
                values |= run_rounds(cells, rounds=1)
        measured = [cell for name, cell in values.items() if f", {num_workers} workers," in name]
        passes = median(cell[_ALONE][0] - cell[_UPDATE][0] for cell in measured)
        cell = case_of(arguments, "allreduce").cell(num_workers)
        model = model_of(cell, fit.link, passes)
        exact = model.kind.workload(cell.global_batch_size).choices(num_workers)
        crossings += [(num_workers, one) for one in find_crossings(model, cell, exact, *_BANDWIDTHS)]
    document = record_document(
        name="exchange_links",
        command=f"python -m benchmarks.exchange_links --exchanges {' '.join(arguments.exchanges)} "
        f"--workers {' '.join(map(str, arguments.workers))} --links {' '.join(map(str, arguments.links))} "
        f"--batch-size {arguments.batch_size} --steps {arguments.steps}",
        corpus=f"noise of {arguments.image_size}x{arguments.image_size} pixels",
        quantities=_QUANTITIES,
        values=values,
        comparisons=[],
        packages=["torch"],
    )
    document["links"] = {name: asdict(fit) for name, fit in links.items()}
    document["crossings"] = [{"num_workers": number} | asdict(crossing) for number, crossing in crossings]
    publish(document)
    sys.stdout.write("".join(_line(*crossing) for crossing in crossings) or "no crossings\n")
    return 0


def case_of(arguments: Arguments, exchange: ExchangeName) -> Case:
    """Return what the workers do."""
    return Case(
        exchange=exchange,
        measured="times",
        model=arguments.model,
        image_size=arguments.image_size,
        global_batch_size=arguments.batch_size,
        num_steps=arguments.steps,
        num_warm_up_steps=1,
    )


def measure(arguments: Arguments, exchange: ExchangeName, lab: Hosts, link: Link) -> Mapping[str, float]:
    """Return the quantities of an exchange; see `_QUANTITIES`."""
    case = case_of(arguments, exchange)
    cell = dataclasses.replace(case.cell(len(lab)), gigabits_per_second=link.bytes_per_second * 8e-9)
    measured = run_case(case, lab)
    alone, update = measured["alone_step_seconds"], measured["alone_update_seconds"]
    return {
        _STEP: measured["step_seconds"],
        _ALONE: alone,
        _UPDATE: update,
        _BLOCKED: measured["blocked_seconds"],
        _PREDICTED: model_of(cell, link, alone - update).predict(cell).step_seconds + update,
    }


def model_of(cell: Cell, link: Link, passes_seconds: float) -> CostModel:
    """Return the cost model of a step but for its update, with a perfect overlap.

    Its bandwidths are without the packets' headers.

    Args:
        cell: Number of workers and batch.
        link: Link whose latency counts.
        passes_seconds: Time of a step without an exchange and the update.
    """
    pace = Pace(seconds_per_sample=passes_seconds / samples_per_worker(cell))
    network = Network(message_seconds=link.latency_seconds / num_messages(cell.num_workers))
    return CostModel(kind=Kind.of(cell), pace=pace, network=network)


def _line(num_workers: int, crossing: Crossing) -> str:
    place = f"{crossing.gigabits_per_second:.2g} Gbit/s"
    return f"{num_workers} workers: {crossing.below} below {place}, {crossing.above} above\n"


def _label(exchange: ExchangeName, num_workers: int, gigabits: float) -> str:
    return f"{exchange}, {num_workers} workers, {gigabits:g} Gbit/s"


if __name__ == "__main__":
    run_command(main)
