"""Measure how long each exchange of gradients holds up a training step, on workers joined by a loopback link.

In each process, steps with the exchange and steps without any take turns. The exchange `factors` also computes what no
exchange asks for: the dense layers' gradients of the other workers' samples, whose products are timed by themselves, on
all workers at once. Of the workers, the slowest counts. The steps are those of a run in float32, on noise. By root
only.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import tyro

from benchmarks.exchange_process import Case, run_case
from benchmarks.record import Comparison, publish, record_document, run_rounds
from cluster.lab.hosts import hosts
from cluster.scaling.experiment import ExchangeName
from pipeline.command import run_command

_STEP, _ALONE, _EXTRA, _BLOCKED = "step_seconds", "alone_seconds", "extra_seconds", "blocked_seconds"
_RATIO = "ratio_to_alone_and_extra"
_QUANTITIES = {
    _STEP: "a step with the exchange, median",
    _ALONE: "a step without an exchange, in turn with the former, median",
    _EXTRA: "products of the dense layers' gradients for the other workers' samples, median; by `factors` alone",
    _BLOCKED: "of a step with the exchange, in which it waits for it, median",
    _RATIO: "a step with the exchange to one without and the extra products",
}
_LARGEST_RATIO = 1.1


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Command line of `python -m benchmarks.exchange_overlap`."""

    exchanges: tuple[ExchangeName, ...] = ("allreduce", "bf16", "factors", "hybrid")
    """Exchanges to measure."""
    workers: tuple[int, ...] = (2,)
    """Numbers of workers."""
    batch_size: int = 128
    """Global batch size."""
    model: str = "alexnet_2012"
    """Model to train."""
    image_size: int = 224
    """Height and width of the pictures."""
    steps: int = 5
    """Timed steps, after two others."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; see the module."""
    arguments = tyro.cli(Arguments, args=argv, description=__doc__)
    cells = [(exchange, num_workers) for num_workers in arguments.workers for exchange in arguments.exchanges]
    values = run_rounds({_label(*cell): partial(measure, arguments, *cell) for cell in cells}, rounds=1)
    publish(
        record_document(
            name="exchange_overlap",
            command=f"python -m benchmarks.exchange_overlap --exchanges {' '.join(arguments.exchanges)} "
            f"--workers {' '.join(map(str, arguments.workers))} --batch-size {arguments.batch_size} "
            f"--steps {arguments.steps}",
            corpus=f"noise of {arguments.image_size}x{arguments.image_size} pixels",
            quantities=_QUANTITIES,
            values=values,
            comparisons=[
                Comparison(
                    of=_label(exchange, num_workers),
                    quantity=_RATIO,
                    at_most=_LARGEST_RATIO if exchange == "factors" else None,
                )
                for exchange, num_workers in cells
            ],
            packages=["torch"],
        )
    )
    return 0


def measure(arguments: Arguments, exchange: ExchangeName, num_workers: int) -> Mapping[str, float]:
    """Return the quantities of an exchange; see `_QUANTITIES`."""
    case = Case(
        exchange=exchange,
        measured="times",
        model=arguments.model,
        image_size=arguments.image_size,
        global_batch_size=arguments.batch_size,
        num_steps=arguments.steps,
    )
    with hosts(1) as lab:
        measured = run_case(case, [lab[0]] * num_workers)
    extra = measured["extra_seconds"] if exchange == "factors" else 0.0
    return {
        _STEP: measured["step_seconds"],
        _ALONE: measured["alone_step_seconds"],
        _EXTRA: extra,
        _BLOCKED: measured["blocked_seconds"],
        _RATIO: measured["step_seconds"] / (measured["alone_step_seconds"] + extra),
    }


def _label(exchange: ExchangeName, num_workers: int) -> str:
    return f"{exchange}, {num_workers} workers"


if __name__ == "__main__":
    run_command(main)
