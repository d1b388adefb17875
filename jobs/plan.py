"""Plan a training run on N workers: images/s, time, price, what binds, and the best number of workers and exchange.

    python jobs/plan.py --table SWEEP/scaling.parquet --workers 64 --bandwidth 10gbit --batch-size-per-worker 128
    python jobs/plan.py --workers 64 --images-per-second-per-worker 2000 --bandwidth 10gbit --latency-microseconds 20
        --global-batch-size 8192 --price-per-hour 1.5

The cost model predicts it from the table of jobs/scale.py, from what is stated here, or from both; what is stated
replaces what was measured. Each input is marked as measured, stated or assumed. With a table, the interval of the
throughput is the model's largest error on workers that it was not fitted to; stated inputs count as exact. Without one,
it reaches from an exchange that hides behind nothing to one that hides as far as it can. Prices are for one worker and
hour. Interruptions (--interruptions-per-hour) cost what a kill drill has measured (--drill), or --restart-seconds.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    from jobs.bootstrap import prepare

    prepare("plan")

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import tyro

from pipeline.command import InputError, run_command
from pipeline.json_answer import JsonTarget, completed, json_answer


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Command line of `jobs/plan.py`."""

    workers: int
    """Largest number of workers to plan for."""
    table: Path | None = None
    """Table of jobs/scale.py: `scaling.parquet`."""
    global_batch_size: int | None = None
    """Samples per step over all workers. Either this or the next."""
    batch_size_per_worker: int | None = None
    """Samples per step of each worker."""
    bandwidth: str | None = None
    """Bandwidth of each worker's link, such as 10gbit. Default: the table's, if it has one alone."""
    latency_microseconds: float | None = None
    """Time of a message between two workers that holds almost nothing. Default: the table's."""
    images_per_second_per_worker: float | None = None
    """Speed of a worker that computes alone. Default: the table's."""
    loader_images_per_second_per_worker: float | None = None
    """Speed of a worker's loader alone, as `python -m pipeline.bench` measures it."""
    model: str | None = None
    """Name of the model. Default: the table's, or alexnet_2012."""
    precision: Literal["float32", "bfloat16"] | None = None
    """Precision of the computation. Default: the table's, or float32."""
    image_size: int | None = None
    """Height and width of the model's input in pixels. Default: the table's, or 224."""
    num_classes: int | None = None
    """Number of classes. Default: the table's, or 1000."""
    loader: Literal["synthetic", "real"] | None = None
    """Rows of the table to use, where it has both."""
    machine: str | None = None
    """Part of the name of a kind of machine: rows of the table to use, where it has several."""
    exchanges: tuple[Literal["allreduce", "factors", "hybrid", "bf16"], ...] = ()
    """Exchanges to choose from. Default: all that are exact."""
    num_images: int | None = None
    """Number of training pictures. Default: ImageNet's, 1,281,167."""
    epochs: float | None = None
    """Number of epochs. Default: 90."""
    price_per_hour: float | None = None
    """Price of a worker for an hour."""
    currency: str = "EUR"
    """Its currency."""
    within_hours: float | None = None
    """Longest time of the run, for the cheapest number of workers."""
    interruptions_per_hour: float = 0.0
    """How often a worker is interrupted per hour, as spot instances are."""
    drill: Path | None = None
    """`drill.json` of `python -m cluster.drill`: how long an interruption lasts, measured."""
    restart_seconds: float | None = None
    """How long an interruption lasts, stated: from the loss of a worker to the next step."""
    checkpoint_seconds: float = 30.0
    """Time between checkpoints; half of it is computed again after each interruption."""
    data: Path | None = None
    """Dataset folder, for the size of a picture on the disk."""
    bytes_per_image: float | None = None
    """Size of a picture on the disk, stated."""
    json: JsonTarget = None
    """File to write the plan to as JSON; without a file, standard output."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; see the module."""
    arguments = tyro.cli(Arguments, args=completed(argv), description=__doc__)
    _check(arguments)
    # Imported here: the command's help needs neither torch nor SciPy, which take seconds to load.
    from jobs.scaling.plan_inputs import gather_inputs
    from jobs.scaling.plan_report import format_plan, plan_document

    with json_answer(arguments.json, arguments.table, arguments.drill, arguments.data) as answer:
        inputs = gather_inputs(arguments)
        if arguments.json is not None:
            answer(plan_document(arguments, inputs))
        sys.stdout.write(format_plan(arguments, inputs))
    return 0


def _check(arguments: Arguments) -> None:
    """Raise InputError for arguments that cannot be."""
    problems = []
    for name in ("workers", "global_batch_size", "batch_size_per_worker", "num_images", "num_classes", "image_size"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            problems.append(f"--{name.replace('_', '-')} is {value}; it must be at least 1")
    for name in (
        "images_per_second_per_worker", "loader_images_per_second_per_worker", "epochs", "bytes_per_image",
        "within_hours",
    ):  # fmt: skip
        value = getattr(arguments, name)
        if value is not None and not 0 < value < math.inf:
            problems.append(f"--{name.replace('_', '-')} is {value}; it must be more than 0")
    for name in (
        "latency_microseconds", "price_per_hour", "interruptions_per_hour", "restart_seconds", "checkpoint_seconds",
    ):  # fmt: skip
        value = getattr(arguments, name)
        if value is not None and not 0 <= value < math.inf:
            problems.append(f"--{name.replace('_', '-')} is {value}; it must be at least 0")
    for first, second in (("drill", "restart_seconds"), ("data", "bytes_per_image")):
        if getattr(arguments, first) is not None and getattr(arguments, second) is not None:
            problems.append(f"--{first} and --{second.replace('_', '-')} say the same twice; leave one out")
    if (arguments.global_batch_size is None) == (arguments.batch_size_per_worker is None):
        problems.append("give either --global-batch-size or --batch-size-per-worker")
    elif (arguments.global_batch_size or arguments.workers) < arguments.workers:
        problems.append(
            f"--global-batch-size {arguments.global_batch_size} leaves some of {arguments.workers} workers without a "
            "sample; it must be at least --workers"
        )
    if problems:
        raise InputError("\n".join(problems))


if __name__ == "__main__":
    run_command(main)
