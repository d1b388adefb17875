"""The table of a scaling experiment: one row per cell and repeat, as Parquet.

A cell is one choice on each axis. It is repeated in blocks: a block starts its processes anew, on one kind of machine,
and runs all its cells in a random order. So two rows of one block are a pair, and their ratio is free of what differs
between blocks; the steps within a row are no independent repeats. A single worker exchanges nothing, so it has the cell
without an exchange alone.
"""

import dataclasses
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from types import UnionType
from typing import Any, Literal, get_args

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.command import InputError
from pipeline.system.files import write_table

NO_EXCHANGE = "none"  # exchange of a cell whose workers compute alone: what the others are compared with
Loader = Literal["synthetic", "real"]


@dataclass(frozen=True, kw_only=True, order=True)
class Cell:
    """One choice on each axis.

    Attributes:
        model: Name of the model.
        image_size: Height and width of its input in pixels.
        num_classes: Number of classes.
        precision: Precision of the computation, `float32` or `bfloat16`.
        loader: `synthetic`, noise that is there at once, or `real`, a dataset's pictures.
        encoding: Encoding of that dataset; empty with `synthetic`.
        num_workers: Number of workers.
        global_batch_size: Samples per step over all workers.
        exchange: Exchange of gradients: `none`, `bf16`, or an exact one.
        cpus_per_worker: CPUs that each worker may use at most; 0: as many as there are.
        gigabits_per_second: Bandwidth that each worker's link is shaped to, headers included; 0: as it is, which
            `read_rows` replaces by what was measured.
    """

    model: str
    image_size: int
    num_classes: int
    precision: str
    loader: Loader = "synthetic"
    encoding: str = ""
    num_workers: int
    global_batch_size: int
    exchange: str
    cpus_per_worker: float = 0.0
    gigabits_per_second: float = 0.0

    @property
    def without_exchange(self) -> "Cell":
        """The same computation with no exchange, on no particular link."""
        return dataclasses.replace(self, exchange=NO_EXCHANGE, gigabits_per_second=0.0)

    def __str__(self) -> str:
        """Describe it in a few words."""
        words = [self.model, self.precision, counted(self.num_workers, "worker"), f"batch {self.global_batch_size}"]
        words += [self.exchange] + [f"{self.gigabits_per_second:g} Gbit/s"] * (self.gigabits_per_second > 0)
        return ", ".join([*words, *([f"{self.encoding} pictures"] if self.loader == "real" else [])])


@dataclass(frozen=True, kw_only=True)
class Row(Cell):
    """A cell's measurement in one block.

    Times are in seconds, and medians over the steps. All times of a step are those of the worker that the others wait
    for, which took longest without its own waits for the exchange; on a GPU, where waits are not seen, of the one that
    took longest.

    Attributes:
        block: Number of the block, from 0.
        place: Place of the cell in the random order of its launch, from 0: among the block's cells of as many workers.
        num_steps: Number of timed steps.
        images_per_second: Samples per second of all workers, global batch / step time.
        step_seconds: A step.
        step_seconds_p90: 90th percentile of the steps.
        mean_step_seconds: A step without its waits for the exchange, mean over the workers; where there is no exchange,
            the mean of their whole steps. NaN with one on a GPU, where waits are not seen.
        data_wait_seconds: Of it, waiting for the loader.
        forward_seconds: Of it, the forward pass and the loss, with the exchanges it waits for.
        backward_seconds: Of it, the backward pass, with the exchanges it waits for.
        blocked_seconds: Of those two, waiting for the exchange; 0 without one, NaN with one on a GPU.
        exposed_seconds: A step less the same block's step without an exchange (`Cell.without_exchange`); NaN if that
            was not measured.
        update_seconds: Of a step, the update of the weights.
        sent_bytes: Bytes that a worker's interface sent per step, mean over workers; NaN where nothing counts them, as
            for workers that share an interface, and for NCCL.
        expected_bytes: The same by the exchange's formula.
        operations: Floating-point operations of a step's forward and backward passes over all workers.
        peak_memory_bytes: Largest memory of a worker: of tensors on its GPU, else the resident memory of its process.
        cpu_seconds: CPU time per step, sum over workers.
        throttled_seconds: Time per step in which a worker's CPU limit held it up, mean over workers; NaN without limit.
            Summed over the CPUs that it was held up on, so it can be longer than the step.
        link_latency_seconds: Latency of the link by its sweep; NaN without one, as are the next two.
        link_bytes_per_second: Bandwidth of the link by its sweep.
        link_deviation: Largest relative deviation of the sweep's times from latency + bytes / bandwidth.
        code: Hash of this project's code.
        versions: Versions of Python and the libraries, as JSON.
        machine: Kind of the machine: processor or card, and their number.
        time: When it ended, ISO 8601, UTC.
    """

    block: int
    place: int
    num_steps: int
    images_per_second: float
    step_seconds: float
    step_seconds_p90: float
    mean_step_seconds: float
    data_wait_seconds: float
    forward_seconds: float
    backward_seconds: float
    blocked_seconds: float
    exposed_seconds: float = field(default=float("nan"))
    update_seconds: float
    sent_bytes: float
    expected_bytes: float
    operations: float
    peak_memory_bytes: int
    cpu_seconds: float
    throttled_seconds: float
    link_latency_seconds: float
    link_bytes_per_second: float
    link_deviation: float
    code: str
    versions: str
    machine: str
    time: str

    @property
    def cell(self) -> Cell:
        """Its cell."""
        return Cell(**{each.name: getattr(self, each.name) for each in dataclasses.fields(Cell)})


def counted(number: int, name: str) -> str:
    """Return a number of things in words."""
    return f"{number} {name}{'s' * (number != 1)}"


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Write a table, completely or not at all."""
    write_table(path, pa.Table.from_pylist([dataclasses.asdict(row) for row in rows], schema=_SCHEMA))


def read_rows(path: Path) -> list[Row]:
    """Read a table. Links that were not shaped get the bandwidth that was measured, the same in all rows.

    Raises:
        InputError: There is none at this path, or it is no table of a scaling experiment.
    """
    if not path.is_file():
        raise InputError(f"{path} is not there; name the scaling.parquet of jobs/scale.py")
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise InputError(f"{path} can't be read as a table of jobs/scale.py: {error}") from error
    missing = sorted(set(_SCHEMA.names) - set(table.schema.names))
    if missing:
        raise InputError(f"{path} is not a table of jobs/scale.py, or of an older one: no column {', '.join(missing)}")
    return _on_measured_links([Row(**values) for values in table.select(_SCHEMA.names).to_pylist()])


def on_one_machine(rows: Sequence[Row], machine: str | None) -> list[Row]:
    """Return the rows of one kind of machine, since times of several must not be mixed.

    Args:
        rows: Rows of any machines.
        machine: What the command was given as `--machine`: a part of the kind's name; None: there is one alone.

    Raises:
        InputError: No kind matches, or several do and none is exactly that.
    """
    kinds = sorted({row.machine for row in rows})
    named = [machine] if machine in kinds else [kind for kind in kinds if machine is None or machine in kind]
    if rows and not named:
        raise InputError(f"--machine {machine} matches no machine of the table: {'; '.join(kinds)}")
    if len(named) > 1:
        raise InputError(
            f"the table was measured on several kinds of machines: {'; '.join(named)}; choose by --machine, a part of "
            "its name"
        )
    return [row for row in rows if row.machine in named]


def with_exposed(rows: Sequence[Row]) -> list[Row]:
    """Return the rows with what a step takes longer than the same block's without an exchange."""
    alone = {(row.block, row.cell.without_exchange): row.step_seconds for row in rows if row.exchange == NO_EXCHANGE}
    return [
        dataclasses.replace(
            row, exposed_seconds=row.step_seconds - alone.get((row.block, row.cell.without_exchange), float("nan"))
        )
        for row in rows
    ]


def _on_measured_links(rows: list[Row]) -> list[Row]:
    """Return rows in which exchanges on links as they are have these links' median bandwidth, to three digits."""

    def is_unshaped(row: Row) -> bool:
        is_exchanging = row.exchange != NO_EXCHANGE and math.isfinite(row.link_bytes_per_second)
        return is_exchanging and not row.gigabits_per_second

    measured = [row.link_bytes_per_second * 8e-9 for row in rows if is_unshaped(row)]
    if not measured:
        return rows
    gigabits = float(f"{median(measured):.3g}")
    return [dataclasses.replace(row, gigabits_per_second=gigabits) if is_unshaped(row) else row for row in rows]


def _arrow_type(annotation: Any) -> pa.DataType:
    assert not isinstance(annotation, UnionType)
    if get_args(annotation):  # a Literal of strings
        return pa.string()
    return {int: pa.int64(), float: pa.float64(), str: pa.string()}[annotation]


_SCHEMA = pa.schema([(each.name, _arrow_type(each.type)) for each in dataclasses.fields(Row)])
