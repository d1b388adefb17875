"""What `jobs/plan.py` starts from: each input with where it comes from, measured, stated or assumed."""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Literal

from cluster.lab.cost_model.fit import (
    fit_cost_model,
    fit_network,
    fit_overlap,
    fit_pace,
    is_exchanging,
    shows_fixed_time,
)
from cluster.lab.cost_model.held_out import MODEL, judge, splits
from cluster.lab.cost_model.kind import Kind, by_kind, samples_per_worker
from cluster.lab.cost_model.model import CostModel, Network, Overlap, Pace
from cluster.lab.cost_model.planning import Job, Point, nothing_hides
from cluster.lab.efficiency import by_cell, step_seconds
from cluster.lab.scaling_table import Row, on_one_machine, read_rows
from cluster.lab.shaped_link import parse_bandwidth
from model.registry import ModelConfig, check_image_size
from pipeline.command import InputError
from pipeline.dataset import Dataset

if TYPE_CHECKING:
    from jobs.plan import Arguments

Source = Literal["measured", "stated", "assumed"]
_KIND_DEFAULTS: dict[str, Any] = {
    "model": "alexnet_2012",
    "image_size": 224,
    "num_classes": 1000,
    "precision": "float32",
}
_NUM_IMAGES, _NUM_EPOCHS = 1_281_167, 90.0


@dataclass(frozen=True)
class Input:
    """An input of a plan.

    Attributes:
        name: Its name.
        value: Its value in words, with the unit.
        source: Whether it was measured, stated on the command line, or assumed, as an option's default is.
        note: What the reader should know of it.
    """

    name: str
    value: str
    source: Source
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class PlanInputs:
    """Everything that a plan is computed from.

    Attributes:
        model: Cost model.
        job: What is to be trained.
        largest_error: Largest relative error of the model where that is known, else None.
        error_note: How the plan's intervals are made.
        inputs: All inputs, for the reader.
        image_bytes: Bytes that a training picture takes on the disk, or None.
    """

    model: CostModel
    job: Job
    largest_error: float | None
    error_note: str
    inputs: tuple[Input, ...]
    image_bytes: float | None

    def interval(self, point: Point) -> tuple[float, float]:
        """Return bounds of a point's throughput."""
        if self.largest_error is not None:
            return (
                point.images_per_second * max(0.0, 1 - self.largest_error),
                point.images_per_second * (1 + self.largest_error),
            )
        return nothing_hides(self.model).images_per_second(point.cell), point.images_per_second


def gather_inputs(arguments: "Arguments") -> PlanInputs:
    """Read and check all inputs.

    Raises:
        InputError: One line per cause.
    """
    rows = _rows_of(arguments)
    kind = Kind.of(rows[0]) if rows else _stated_kind(arguments)
    inputs = [Input("model", str(kind), "measured")] if rows else list(_kind_inputs(arguments, kind))
    pace = _pace(arguments, rows, inputs)
    network, gigabits = _network(arguments, rows, inputs)
    model = CostModel(kind=kind, pace=pace, network=network)
    largest_error, note = None, "from nothing hides behind the backward pass, to everything that fits does"
    if any(map(is_exchanging, rows)):
        model = replace(model, overlap=fit_overlap(rows))
        largest_error, note = _known_error(rows)
    inputs.append(_overlap_input(model.overlap, rows))
    if rows:
        inputs.append(_range_input(rows))
    image_bytes = _image_bytes(arguments, inputs)
    job = _job(arguments, gigabits, inputs)
    return PlanInputs(
        model=model,
        job=job,
        largest_error=largest_error,
        error_note=note,
        inputs=tuple(inputs),
        image_bytes=image_bytes,
    )


def _rows_of(arguments: "Arguments") -> list[Row]:
    """Return the table's rows of the one kind that the arguments name; none without a table."""
    if arguments.table is None:
        return []
    kinds = by_kind(read_rows(arguments.table))
    wanted = {
        "model": arguments.model,
        "precision": arguments.precision,
        "image_size": arguments.image_size,
        "num_classes": arguments.num_classes,
        "loader": arguments.loader,
    }
    found = {
        kind: rows
        for kind, rows in kinds.items()
        if all(value is None or getattr(kind, name) == value for name, value in wanted.items())
    }
    if len(found) == 1:
        return on_one_machine(next(iter(found.values())), arguments.machine)
    held = "; ".join(map(str, kinds)) or "nothing"
    if not found:
        raise InputError(f"{arguments.table} has no rows of this model and precision; it holds {held}")
    raise InputError(
        f"{arguments.table} fits several: {'; '.join(map(str, found))}; choose by --model, --precision, --image-size, "
        "--num-classes and --loader"
    )


def _stated_kind(arguments: "Arguments") -> Kind:
    stated = {name: getattr(arguments, name) for name in _KIND_DEFAULTS if getattr(arguments, name) is not None}
    kind = Kind(**_KIND_DEFAULTS | stated, loader=arguments.loader or "synthetic")
    try:
        check_image_size(ModelConfig(name=kind.model), kind.image_size)
    except ValueError as error:
        raise InputError(f"--model {kind.model}, --image-size {kind.image_size}: {error}") from error
    return kind


def _kind_inputs(arguments: "Arguments", kind: Kind) -> Iterator[Input]:
    """Yield what the model is where no table says it."""
    values = {
        "model": kind.model,
        "image_size": f"{kind.image_size} px",
        "num_classes": f"{kind.num_classes:,}",
        "precision": kind.precision,
    }
    for name, value in values.items():
        source: Source = "assumed" if getattr(arguments, name) is None else "stated"
        yield Input(name.replace("_", " ").replace("num ", ""), value, source)


def _pace(arguments: "Arguments", rows: Sequence[Row], inputs: list[Input]) -> Pace:
    stated = arguments.images_per_second_per_worker
    if stated is not None:
        pace = Pace(seconds_per_sample=1 / stated)
        inputs += [
            Input("computation", f"{stated:,.6g} images/s per worker, update included", "stated"),
            Input("fixed time of a step", "0 s", "assumed", "the same images/s at any batch"),
        ]
    elif rows:
        pace = fit_pace(rows)
        inputs.append(
            Input(
                "computation",
                f"{pace.fixed_seconds:.3g} s + {pace.seconds_per_sample:.3g} s per image + update "
                f"{pace.update_seconds:.3g} s",
                "measured",
                f"on {rows[0].machine}",
            )
        )
        if not shows_fixed_time(rows):
            why = "all was measured at one batch per worker, so it can't be told from the time per image"
            inputs.append(Input("fixed time of a step", "0 s", "assumed", why))
    else:
        raise InputError("the speed of a worker is unknown; give --table, or --images-per-second-per-worker")
    if arguments.loader_images_per_second_per_worker is not None:
        rate = arguments.loader_images_per_second_per_worker
        inputs.append(Input("loader", f"{rate:,.6g} images/s per worker", "stated"))
        return replace(pace, loader_images_per_second=rate)
    if math.isfinite(pace.loader_images_per_second):
        inputs.append(Input("loader", f"{pace.loader_images_per_second:,.6g} images/s per worker", "measured"))
    else:
        inputs.append(Input("loader", "never what binds", "assumed", "else --loader-images-per-second-per-worker"))
    return pace


def _network(arguments: "Arguments", rows: Sequence[Row], inputs: list[Input]) -> tuple[Network, float]:
    swept = [row for row in rows if is_exchanging(row)]
    latency = arguments.latency_microseconds
    if arguments.bandwidth is not None:
        gigabits = parse_bandwidth(arguments.bandwidth)
        if not gigabits > 0:
            raise InputError(f"--bandwidth is {arguments.bandwidth}; it must be more than 0")
    else:
        measured = sorted({row.gigabits_per_second for row in swept})
        if len(measured) != 1:
            held = f"; the table has {', '.join(f'{one:g}gbit' for one in measured)}" if measured else ""
            raise InputError(f"the bandwidth of a worker's link is unknown; give --bandwidth, such as 10gbit{held}")
        gigabits = measured[0]
    if swept:
        network = fit_network(swept)
        if latency is not None:
            network = replace(network, message_seconds=latency * 1e-6)
    elif latency is not None:
        network = Network(message_seconds=latency * 1e-6)
    else:
        raise InputError(
            "the latency of a worker's link is unknown; give --latency-microseconds, the time of a message that holds "
            "almost nothing, or a --table with exchanges on measured links"
        )
    share = network.link(gigabits, 2).bytes_per_second / (gigabits * 1e9 / 8)
    inputs += [
        Input("bandwidth", f"{gigabits:g} Gbit/s per worker", "measured" if arguments.bandwidth is None else "stated"),
        Input("of it, for collectives", f"{share:.1%}", "measured" if swept else "assumed"),
        Input("message", f"{network.message_seconds * 1e6:.3g} µs", "measured" if latency is None else "stated"),
    ]
    return network, gigabits


def _overlap_input(overlap: Overlap, rows: Sequence[Row]) -> Input:
    values = f"kappa {overlap.kappa:.2f}, hidden share {overlap.hidden_share:.2f}, tail {overlap.tail:.2f}"
    num = len({row.cell for row in rows if is_exchanging(row)})
    if num:
        return Input("overlap", values, "measured", f"fitted to {num} cells")
    return Input("overlap", values, "assumed", "all that fits behind the backward pass hides")


def _range_input(rows: Sequence[Row]) -> Input:
    ranges = [
        _range([row.num_workers for row in rows], "workers"),
        _range([samples_per_worker(row) for row in rows], "samples per worker"),
    ]
    if any(map(is_exchanging, rows)):
        ranges.append(_range([row.gigabits_per_second for row in rows if is_exchanging(row)], "Gbit/s"))
    return Input("measured range", ", ".join(ranges), "measured", "a plan beyond it is extrapolated")


def _range(values: Sequence[float], unit: str) -> str:
    low, high = min(values), max(values)
    return f"{low:g} {unit}" if low == high else f"{low:g} to {high:g} {unit}"


def _known_error(rows: Sequence[Row]) -> tuple[float, str]:
    """Return the largest error of a model fitted without the largest number of workers, or without that none."""
    for split in splits(rows):
        if split.axis == "num_workers":
            for verdict in judge(split):
                if verdict.predictor == MODEL:
                    return verdict.largest_error, f"the largest error on {split.value:g} workers, kept out of a fit"
    swept = [row for row in rows if is_exchanging(row)]
    model, cells = fit_cost_model(rows), by_cell(swept)
    errors = [abs(model.predict(cell).step_seconds / step_seconds(cells[cell]) - 1) for cell in cells]
    return max(errors), "the largest error on the cells of the fit itself: no number of workers could be kept out"


def _image_bytes(arguments: "Arguments", inputs: list[Input]) -> float | None:
    if arguments.data is not None:
        dataset = Dataset.open(arguments.data.absolute())
        shards = dataset.manifest("train", ["shard"])["shard"].unique().to_pylist()
        size = sum(dataset.listed(shard).num_bytes for shard in shards) / dataset.num_samples("train")
        inputs.append(Input("picture on the disk", f"{size:,.0f} bytes", "measured", dataset.encoding))
        return size
    if arguments.bytes_per_image is not None:
        inputs.append(Input("picture on the disk", f"{arguments.bytes_per_image:,.0f} bytes", "stated"))
    return arguments.bytes_per_image


def _job(arguments: "Arguments", gigabits: float, inputs: list[Input]) -> Job:
    per_worker, whole = arguments.batch_size_per_worker, arguments.global_batch_size
    inputs.append(Input("batch", f"{whole:,} in all" if whole is not None else f"{per_worker:,} per worker", "stated"))
    num_epochs = _NUM_EPOCHS if arguments.epochs is None else arguments.epochs
    num_images = _NUM_IMAGES if arguments.num_images is None else arguments.num_images
    inputs += [
        Input("epochs", f"{num_epochs:g}", "assumed" if arguments.epochs is None else "stated"),
        Input("training images", f"{num_images:,}", "assumed" if arguments.num_images is None else "stated"),
    ]
    if arguments.price_per_hour is not None:
        inputs.append(
            Input("price", f"{arguments.price_per_hour:g} {arguments.currency} per worker and hour", "stated")
        )
    rate, seconds = arguments.interruptions_per_hour, 0.0
    if rate:
        seconds = _interruption_seconds(arguments, inputs)
        inputs.append(Input("interruptions", f"{rate:g} per worker and hour", "stated"))
    return Job(
        num_images=num_images,
        num_epochs=num_epochs,
        global_batch_size=whole,
        batch_size_per_worker=per_worker,
        gigabits_per_second=gigabits,
        exchanges=arguments.exchanges,
        price_per_hour=arguments.price_per_hour,
        interruptions_per_hour=rate,
        interruption_seconds=seconds,
    )


def _interruption_seconds(arguments: "Arguments", inputs: list[Input]) -> float:
    again = arguments.checkpoint_seconds / 2
    if arguments.restart_seconds is not None:
        seconds, source = arguments.restart_seconds, "stated"
    elif arguments.drill is not None:
        seconds, source = read_recovery(arguments.drill), "measured"
    else:
        raise InputError(
            "what an interruption costs is unknown; give --drill, the drill.json of python -m cluster.drill, or "
            "--restart-seconds"
        )
    inputs += [
        Input("restart", f"{seconds:.3g} s", "stated" if source == "stated" else "measured"),
        Input("computed again", f"{again:g} s each time", "assumed", "half of --checkpoint-seconds"),
    ]
    return seconds + again


def read_recovery(path: Path) -> float:
    """Return the median time of a drill from a loss to the next step, in seconds.

    Raises:
        InputError: The file is no report of a drill, or has no event.
    """
    try:
        events = json.loads(path.read_text())["events"]
        seconds = [float(event["first_step_seconds"]) for event in events if event["event"] != "join"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} can't be read as the drill.json of python -m cluster.drill: {error!r}") from error
    if not seconds:
        raise InputError(f"{path} has no event that cost time; run python -m cluster.drill again")
    return median(seconds)
